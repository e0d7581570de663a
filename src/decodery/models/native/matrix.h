// Linear layers on a CPU, written so that a row's result does not depend on the other rows.
//
// A packed matrix holds panels of 16 outputs. A panel is read once from front to back whatever the
// number of rows, in tiles of up to 4 or 6 rows that run the same operations for each row, and it
// belongs to one thread: results are bitwise the same for any number of rows, any place in the batch
// and any number of threads.
//
// Float panels hold, for each input, the 16 weights side by side; a sum is made of chains of
// multiply-adds over 256 inputs. Code panels hold records, one for each group of 16 or 32 inputs that
// share a scale: 16 scales, 16 offsets where there are any, then the codes, four inputs of one output
// side by side. The inputs are rounded to 8 bits with one scale for 32 of them, products are summed
// as whole numbers, exactly, and a group adds  scale * input scale * sum + offset * sum of inputs.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "crew.h"
#include "simd.h"

namespace decodery {

constexpr int64_t PANEL = 16;
constexpr int64_t CHAIN = 256;       // inputs a chain runs over before it is added to the sum
constexpr int64_t FLOAT_ROWS = 6;    // rows of a tile: as many as there are registers
constexpr int64_t CODE_ROWS = 6;
constexpr int64_t INPUT_GROUP = 32;  // inputs that share one 8-bit scale
// Panels a thread takes at a time: many, since memory is read faster in long runs, but so few that
// all threads end together.
constexpr int64_t LEAST_STRIP = 2, MOST_STRIP = 8, STRIPS = 4;
// Rows a thread takes at a time. What it writes of neighbouring rows shares cache lines, and two
// threads that write to one line stand in each other's way.
constexpr int64_t ROW_CHUNK = 4;

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, CODES4 = 2, CODES8 = 3 };

struct Matrix {
    int64_t inputs, outputs;
    int32_t kind;         // a Kind
    int32_t group;        // codes: inputs that share a scale, 16 or 32
    int32_t half_scales;  // codes: scales and offsets are float16, else float32
    int32_t has_offsets;
    const void* panels;   // null: there is no such matrix
    const float* bias;    // [outputs] or null
};

inline bool is_coded(const Matrix& matrix) { return matrix.kind >= CODES4; }

inline int64_t panels_of(const Matrix& matrix) { return (matrix.outputs + PANEL - 1) / PANEL; }

inline int64_t record_bytes(const Matrix& matrix) {
    const int64_t scales = (matrix.half_scales ? 2 : 4) * (matrix.has_offsets ? 2 : 1) * PANEL;
    return scales + matrix.group * PANEL / (matrix.kind == CODES4 ? 2 : 1);
}

inline int64_t panel_bytes(const Matrix& matrix) {
    switch (matrix.kind) {
        case FLOAT32: return matrix.inputs * PANEL * 4;
        case BFLOAT16: return matrix.inputs * PANEL * 2;
        default: return matrix.inputs / matrix.group * record_bytes(matrix);
    }
}

inline const uint8_t* panel_of(const Matrix& matrix, int64_t panel) {
    return static_cast<const uint8_t*>(matrix.panels) + panel * panel_bytes(matrix);
}

// 32 floats times `inverse`, rounded to the nearest whole numbers, ties to even, in -127..127; and the
// sums of the first and the last 16.
inline void round_codes(const float* from, Vector inverse, int8_t* to, int32_t halves[2]) {
    Integers whole[4];
    for (int64_t at = 0; at < 4; ++at) {
        // Adding 1.5 * 2^23 rounds to a whole number.
        const Vector shifted = load(from + at * LANES) * inverse + splat(12582912.0f);
        whole[at] = __builtin_convertvector(shifted - splat(12582912.0f), Integers);
    }
    halves[0] = sum(whole[0] + whole[1]);
    halves[1] = sum(whole[2] + whole[3]);
#ifdef DECODERY_AVX2
    const auto words = [&](int64_t at) { return reinterpret_cast<__m256i>(whole[at]); };
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(words(0), words(1)),
                                             _mm256_packs_epi32(words(2), words(3)));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(bytes, order));
#else
    for (int64_t at = 0; at < 32; ++at) to[at] = static_cast<int8_t>(whole[at / LANES][at % LANES]);
#endif
}

// The rows a matrix is multiplied with: the floats, and for matrices of codes their 8-bit form.
struct Rows {
    int64_t count, width;
    const float* values;        // [count, width]
    std::vector<int8_t> codes;  // [count, width], -127..127
    std::vector<float> scales;  // [count, width / 32]
    std::vector<float> totals16, totals32;  // [count, width / 16 or 32]: sums of rounded inputs

    Rows(int64_t count, int64_t width, const float* values, bool coded)
        : count(count), width(width), values(values) {
        if (!coded || width % INPUT_GROUP) return;  // no matrix of codes has such a width
        codes.resize(count * width);
        scales.resize(count * (width / INPUT_GROUP));
        totals16.resize(count * (width / 16));
        totals32.resize(count * (width / 32));
    }

    bool coded() const { return !codes.empty(); }

    // Rounds inputs [start, end) of a row, multiples of 32.
    void round(int64_t row, int64_t start, int64_t end) {
        for (int64_t input = start; input < end; input += INPUT_GROUP)
            round_group(row * width + input);
    }

   private:
    void round_group(int64_t at) {
        const float* from = values + at;
        Vector largest = splat(0.0f), poison = splat(0.0f);
        for (int64_t lane = 0; lane < INPUT_GROUP; lane += LANES) {
            const Vector value = load(from + lane);
            largest = maximum(largest, maximum(value, -value));
            poison += value * splat(0.0f);  // nan for nan and inf, which codes cannot hold
        }
        const float scale = maximum(largest) / 127.0f + sum(poison);
        const float inverse = scale > 1e-30f ? 1.0f / scale : 0.0f;
        int32_t halves[2];
        round_codes(from, splat(inverse), codes.data() + at, halves);
        scales[at / 32] = scale;
        totals16[at / 16] = scale * static_cast<float>(halves[0]);
        totals16[at / 16 + 1] = scale * static_cast<float>(halves[1]);
        totals32[at / 32] = scale * static_cast<float>(halves[0] + halves[1]);
    }
};

// Where results go: y [rows, stride] is overwritten, or added to.
struct Output {
    float* y;
    int64_t stride;
    bool add;
};

inline void put(const Output& to, int64_t row, int64_t start, int64_t columns, const Vector sums[2],
                const float* bias) {
    float* out = to.y + row * to.stride + start;
    if (columns == PANEL) {  // whole vectors: a line that another thread had is asked for once
        for (int64_t half = 0; half < 2; ++half) {
            Vector value = sums[half];
            if (bias) value += load(bias + start + half * LANES);
            store(out + half * LANES, to.add ? load(out + half * LANES) + value : value);
        }
        return;
    }
    for (int64_t column = 0; column < columns; ++column) {
        const float sum = sums[column / LANES][column % LANES];
        const float value = bias ? sum + bias[start + column] : sum;
        out[column] = to.add ? out[column] + value : value;
    }
}

// All rows times one panel of the matrix (tiles.cpp).
void multiply_panel(const Matrix& matrix, const Rows& x, int64_t panel, const Output& to);

inline void multiply(Member& member, const Matrix& matrix, const Rows& x, const Output& to) {
    const int64_t panels = panels_of(matrix);
    const int64_t strip = std::clamp(panels / (STRIPS * member.crew_size()), LEAST_STRIP, MOST_STRIP);
    member.each(panels, strip,
                [&](int64_t panel) { multiply_panel(matrix, x, panel, to); });
}

// Output `output` of the matrix as floats [inputs]: a row of an embedding table.
inline void unpack_output(const Matrix& matrix, int64_t output, float* to) {
    const uint8_t* panel = panel_of(matrix, output / PANEL);
    const int64_t column = output % PANEL;
    if (!is_coded(matrix)) {
        for (int64_t input = 0; input < matrix.inputs; ++input) {
            const int64_t at = input * PANEL + column;
            const uint32_t bits =
                matrix.kind == FLOAT32 ? reinterpret_cast<const uint32_t*>(panel)[at]
                                       : reinterpret_cast<const uint16_t*>(panel)[at] << 16;
            std::memcpy(to + input, &bits, sizeof bits);
        }
        return;
    }
    const int64_t group = matrix.group, words = group / 8;
    const int64_t size = matrix.half_scales ? 2 : 4;
    const int64_t heading = (matrix.has_offsets ? 2 : 1) * PANEL * size;
    const auto factor = [&](const uint8_t* at) {
        float value;
        std::memcpy(&value, at, size == 4 ? 4 : 2);
        Float16 half;
        std::memcpy(&half, at, sizeof half);
        return size == 4 ? value : to_float(half);
    };
    for (int64_t start = 0; start < matrix.inputs; start += group, panel += record_bytes(matrix)) {
        const float scale = factor(panel + column * size);
        const float offset = matrix.has_offsets ? factor(panel + (PANEL + column) * size) : 0.0f;
        for (int64_t input = 0; input < group; ++input) {
            int64_t word = input / 4;
            const bool is_high = matrix.kind == CODES4 && word >= words;
            if (is_high) word -= words;
            const uint8_t byte = panel[heading + (word * PANEL + column) * 4 + input % 4];
            const int code = matrix.kind == CODES8 ? static_cast<int8_t>(byte)
                                                   : is_high ? byte >> 4 : byte & 15;
            // A product and a sum, each rounded, as `Codes.dequantise` has them.
            to[start + input] = scale * static_cast<float>(code) + offset;
        }
    }
}

// -- packing --------------------------------------------------------------------------------------

// weight [outputs, inputs] row-major -> panels, padded with zeros.
template <typename Weight>
void pack_floats(const Matrix& matrix, const Weight* weight, Weight* packed) {
    for (int64_t panel = 0; panel < panels_of(matrix); ++panel) {
        Weight* into = packed + panel * matrix.inputs * PANEL;
        for (int64_t column = 0; column < PANEL; ++column) {
            const int64_t output = panel * PANEL + column;
            for (int64_t input = 0; input < matrix.inputs; ++input)
                into[input * PANEL + column] =
                    output < matrix.outputs ? weight[output * matrix.inputs + input] : Weight{0};
        }
    }
}

// codes [outputs, inputs], one a byte; scales and offsets [outputs, inputs / group] of `Scale`.
template <typename Scale>
void pack_codes(const Matrix& matrix, const uint8_t* codes, const Scale* scales,
                const Scale* offsets, uint8_t* packed) {
    const int64_t group = matrix.group, groups = matrix.inputs / group, words = group / 8;
    const int64_t heading = (matrix.has_offsets ? 2 : 1) * PANEL * sizeof(Scale);
    std::memset(packed, 0, panels_of(matrix) * panel_bytes(matrix));
    for (int64_t output = 0; output < matrix.outputs; ++output) {
        const int64_t column = output % PANEL;
        uint8_t* record = packed + output / PANEL * panel_bytes(matrix);
        const uint8_t* from = codes + output * matrix.inputs;
        for (int64_t at = 0; at < groups; ++at, record += record_bytes(matrix), from += group) {
            Scale* heads = reinterpret_cast<Scale*>(record);
            heads[column] = scales[output * groups + at];
            if (matrix.has_offsets) heads[PANEL + column] = offsets[output * groups + at];
            for (int64_t input = 0; input < group; ++input) {
                int64_t word = input / 4;
                const bool is_high = matrix.kind == CODES4 && word >= words;
                if (is_high) word -= words;
                uint8_t& byte = record[heading + (word * PANEL + column) * 4 + input % 4];
                byte |= is_high ? from[input] << 4 : from[input];
            }
        }
    }
}

}  // namespace decodery
