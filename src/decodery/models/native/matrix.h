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
constexpr int64_t CODE_ROWS = 4;
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

// Tiles are functions of their own: inlined into one, they are a third slower (registers run out).
#define DECODERY_APART __attribute__((noinline))

// -- floats ---------------------------------------------------------------------------------------

template <int64_t rows, typename Weight>
DECODERY_APART void float_tile(const float* x, const Weight* panel, int64_t inputs,
                               Vector result[][2]) {
    Vector sums[rows][2] = {};
    for (int64_t start = 0; start < inputs; start += CHAIN) {
        const int64_t end = inputs - start < CHAIN ? inputs : start + CHAIN;
        Vector low[rows], high[rows];
        for (int64_t row = 0; row < rows; ++row) low[row] = high[row] = Vector{};
        for (int64_t input = start; input < end; ++input) {
            const Vector first = load(panel + input * PANEL);
            const Vector second = load(panel + input * PANEL + LANES);
            for (int64_t row = 0; row < rows; ++row) {
                const Vector value = splat(x[row * inputs + input]);
                low[row] = multiply_add(first, value, low[row]);
                high[row] = multiply_add(second, value, high[row]);
            }
        }
        for (int64_t row = 0; row < rows; ++row) {
            sums[row][0] += low[row];
            sums[row][1] += high[row];
        }
    }
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t half = 0; half < 2; ++half) result[row][half] = sums[row][half];
}

template <typename Weight>
void float_rows(int64_t rows, const float* x, const Weight* panel, int64_t inputs,
                Vector sums[][2]) {
    switch (rows) {
        case 1: return float_tile<1>(x, panel, inputs, sums);
        case 2: return float_tile<2>(x, panel, inputs, sums);
        case 3: return float_tile<3>(x, panel, inputs, sums);
        case 4: return float_tile<4>(x, panel, inputs, sums);
        case 5: return float_tile<5>(x, panel, inputs, sums);
        default: return float_tile<6>(x, panel, inputs, sums);
    }
}

// -- codes ----------------------------------------------------------------------------------------

// Sums of products of 4 codes and 4 inputs in each of 8 lanes, exact. 4-bit codes stay below 16, so
// products of a whole group fit 16 bits; 8-bit codes go straight to 32.
#ifdef DECODERY_AVX2
typedef __m256i Lanes;
inline Lanes lanes(const uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline Lanes four_inputs(const int8_t* from) {
    int32_t word;
    std::memcpy(&word, from, sizeof word);
    return _mm256_set1_epi32(word);
}
inline Lanes low_codes(Lanes packed) { return _mm256_and_si256(packed, _mm256_set1_epi8(15)); }
inline Lanes high_codes(Lanes packed) { return low_codes(_mm256_srli_epi16(packed, 4)); }
inline Vector whole_to_float(Lanes sums) {
    return reinterpret_cast<Vector>(_mm256_cvtepi32_ps(sums));
}
inline Lanes magnitude(Lanes codes) { return _mm256_abs_epi8(codes); }
// Keeps the compiler from gathering all products first and adding them later, out of registers.
inline Lanes settled(Lanes sums) {
    asm("" : "+x"(sums));
    return sums;
}
#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
#ifdef __AVXVNNI__
#define DECODERY_DOT _mm256_dpbusd_avx_epi32
#else
#define DECODERY_DOT _mm256_dpbusd_epi32
#endif
inline Lanes add_products4(Lanes sums, Lanes codes, Lanes inputs) {
    return settled(DECODERY_DOT(sums, codes, inputs));
}
inline Lanes total4(Lanes sums) { return sums; }
inline Lanes add_products8(Lanes sums, Lanes size, Lanes codes, Lanes inputs) {
    return settled(DECODERY_DOT(sums, size, _mm256_sign_epi8(inputs, codes)));
}
#else
inline Lanes add_products4(Lanes sums, Lanes codes, Lanes inputs) {
    return settled(_mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, inputs)));
}
inline Lanes total4(Lanes sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
inline Lanes add_products8(Lanes sums, Lanes size, Lanes codes, Lanes inputs) {
    const Lanes pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(inputs, codes));
    return settled(_mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}
#endif
#else
typedef int8_t Lanes_bytes __attribute__((vector_size(32), aligned(1), may_alias));
typedef Integers Lanes;
inline Lanes lanes(const uint8_t* from) {
    Lanes value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
inline Lanes four_inputs(const int8_t* from) {
    int32_t word;
    std::memcpy(&word, from, sizeof word);
    return Lanes{word, word, word, word, word, word, word, word};
}
inline Lanes low_codes(Lanes packed) { return packed & 0x0F0F0F0F; }
inline Lanes high_codes(Lanes packed) { return (packed >> 4) & 0x0F0F0F0F; }
inline Vector whole_to_float(Lanes sums) { return __builtin_convertvector(sums, Vector); }
inline Lanes magnitude(Lanes codes) { return codes; }
inline Lanes signed_byte(Lanes words, int place) { return (words << (24 - 8 * place)) >> 24; }
inline Lanes add_products8(Lanes sums, Lanes, Lanes codes, Lanes inputs) {
    for (int place = 0; place < 4; ++place)
        sums += signed_byte(codes, place) * signed_byte(inputs, place);
    return sums;
}
inline Lanes add_products4(Lanes sums, Lanes codes, Lanes inputs) {
    return add_products8(sums, codes, codes, inputs);
}
inline Lanes total4(Lanes sums) { return sums; }
#endif

constexpr int64_t VECTOR_BYTES = 32;

template <int64_t rows, int64_t group>
inline void products4(const uint8_t* codes, const int8_t* x, int64_t width, Lanes sums[][2]) {
    constexpr int64_t words = group / 8;  // 4-byte words of inputs under the low halves of the codes
    for (int64_t word = 0; word < words; ++word) {
        const Lanes first = lanes(codes + 2 * word * VECTOR_BYTES);
        const Lanes second = lanes(codes + (2 * word + 1) * VECTOR_BYTES);
        for (int64_t row = 0; row < rows; ++row) {
            const Lanes inputs = four_inputs(x + row * width + 4 * word);
            sums[row][0] = add_products4(sums[row][0], low_codes(first), inputs);
            sums[row][1] = add_products4(sums[row][1], low_codes(second), inputs);
        }
        for (int64_t row = 0; row < rows; ++row) {
            const Lanes inputs = four_inputs(x + row * width + 4 * (word + words));
            sums[row][0] = add_products4(sums[row][0], high_codes(first), inputs);
            sums[row][1] = add_products4(sums[row][1], high_codes(second), inputs);
        }
    }
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t half = 0; half < 2; ++half) sums[row][half] = total4(sums[row][half]);
}

template <int64_t rows, int64_t group>
inline void products8(const uint8_t* codes, const int8_t* x, int64_t width, Lanes sums[][2]) {
    for (int64_t word = 0; word < group / 4; ++word) {
        const Lanes first = lanes(codes + 2 * word * VECTOR_BYTES);
        const Lanes second = lanes(codes + (2 * word + 1) * VECTOR_BYTES);
        const Lanes first_size = magnitude(first), second_size = magnitude(second);
        for (int64_t row = 0; row < rows; ++row) {
            const Lanes inputs = four_inputs(x + row * width + 4 * word);
            sums[row][0] = add_products8(sums[row][0], first_size, first, inputs);
            sums[row][1] = add_products8(sums[row][1], second_size, second, inputs);
        }
    }
}

inline Vector load_scales(const uint8_t* from, int64_t half, bool half_scales) {
    if (half_scales) return load(reinterpret_cast<const Float16*>(from) + half * LANES);
    return load(reinterpret_cast<const float*>(from) + half * LANES);
}

template <int64_t rows, Kind kind, int64_t group>
DECODERY_APART void code_tile(const Matrix& matrix, const Rows& x, int64_t from,
                              const uint8_t* record, Vector result[][2]) {
    const int64_t width = x.width, groups = width / group, input_groups = width / INPUT_GROUP;
    const int64_t bytes = record_bytes(matrix), scale_bytes = matrix.half_scales ? 2 : 4;
    const int64_t heading = bytes - group * PANEL / (kind == CODES4 ? 2 : 1);
    const int8_t* codes = x.codes.data() + from * width;
    const float* scales = x.scales.data() + from * input_groups;
    const float* totals = (group == 16 ? x.totals16 : x.totals32).data() + from * groups;
    Vector sums[rows][2] = {};
    for (int64_t at = 0; at < groups; ++at, record += bytes) {
        Lanes whole[rows][2];
        for (int64_t row = 0; row < rows; ++row) whole[row][0] = whole[row][1] = Lanes{};
        if (kind == CODES4)
            products4<rows, group>(record + heading, codes + at * group, width, whole);
        else
            products8<rows, group>(record + heading, codes + at * group, width, whole);
        for (int64_t half = 0; half < 2; ++half) {
            const Vector scale = load_scales(record, half, matrix.half_scales);
            for (int64_t row = 0; row < rows; ++row) {
                const float input_scale = scales[row * input_groups + at * group / INPUT_GROUP];
                sums[row][half] = multiply_add(whole_to_float(whole[row][half]),
                                               scale * splat(input_scale), sums[row][half]);
            }
            if (!matrix.has_offsets) continue;
            const Vector offset =
                load_scales(record + PANEL * scale_bytes, half, matrix.half_scales);
            for (int64_t row = 0; row < rows; ++row)
                sums[row][half] =
                    multiply_add(offset, splat(totals[row * groups + at]), sums[row][half]);
        }
    }
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t half = 0; half < 2; ++half) result[row][half] = sums[row][half];
}

template <Kind kind, int64_t group>
void code_rows(const Matrix& matrix, int64_t rows, const Rows& x, int64_t from,
               const uint8_t* panel, Vector sums[][2]) {
    switch (rows) {
        case 1: return code_tile<1, kind, group>(matrix, x, from, panel, sums);
        case 2: return code_tile<2, kind, group>(matrix, x, from, panel, sums);
        case 3: return code_tile<3, kind, group>(matrix, x, from, panel, sums);
        default: return code_tile<4, kind, group>(matrix, x, from, panel, sums);
    }
}

// -- one layer ------------------------------------------------------------------------------------

inline void multiply_panel(const Matrix& matrix, const Rows& x, int64_t panel, const Output& to) {
    const uint8_t* weights = panel_of(matrix, panel);
    const int64_t start = panel * PANEL;
    const int64_t columns = matrix.outputs - start < PANEL ? matrix.outputs - start : PANEL;
    const int64_t tile = is_coded(matrix) ? CODE_ROWS : FLOAT_ROWS;
    for (int64_t first = 0; first < x.count; first += tile) {
        const int64_t rows = x.count - first < tile ? x.count - first : tile;
        Vector sums[FLOAT_ROWS][2];
        const float* values = x.values + first * x.width;
        if (matrix.kind == FLOAT32)
            float_rows(rows, values, reinterpret_cast<const float*>(weights), x.width, sums);
        else if (matrix.kind == BFLOAT16)
            float_rows(rows, values, reinterpret_cast<const BFloat16*>(weights), x.width, sums);
        else if (matrix.kind == CODES4 && matrix.group == 32)
            code_rows<CODES4, 32>(matrix, rows, x, first, weights, sums);
        else if (matrix.kind == CODES4)
            code_rows<CODES4, 16>(matrix, rows, x, first, weights, sums);
        else if (matrix.group == 32)
            code_rows<CODES8, 32>(matrix, rows, x, first, weights, sums);
        else
            code_rows<CODES8, 16>(matrix, rows, x, first, weights, sums);
        for (int64_t row = 0; row < rows; ++row)
            put(to, first + row, start, columns, sums[row], matrix.bias);
    }
}

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
