// The inner loops of linear layers and attention: tiles of a few rows that stay in registers.
//
// They are a unit of their own so that two processors can compile the kernels (matrix.h, attention.h).

#include "attention.h"
#include "matrix.h"

namespace decodery {

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
#ifdef DECODERY_VNNI
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
        case 4: return code_tile<4, kind, group>(matrix, x, from, panel, sums);
        case 5: return code_tile<5, kind, group>(matrix, x, from, panel, sums);
        default: return code_tile<6, kind, group>(matrix, x, from, panel, sums);
    }
}

void multiply_panel(const Matrix& matrix, const Rows& x, int64_t panel, const Output& to) {
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

// -- attention ------------------------------------------------------------------------------------

// scores [queries, SPAN] of queries against the first `count` keys.
template <int64_t queries, typename Stored>
void score(const float* const* query, const Stored* const* keys, int64_t count, int64_t head_dim,
           float scale, float (*scores)[SPAN]) {
    for (int64_t start = 0; start < count; start += 4) {
        const int64_t left = std::min<int64_t>(4, count - start);
        const Stored* key[4];
        for (int64_t column = 0; column < 4; ++column)  // a missing key repeats the last
            key[column] = keys[start + std::min(column, left - 1)];
        Vector sum[queries][4] = {};
        for (int64_t at = 0; at < head_dim; at += LANES) {
            Vector value[queries];
            for (int64_t row = 0; row < queries; ++row) value[row] = load(query[row] + at);
            for (int64_t column = 0; column < 4; ++column) {
                const Vector part = load(key[column] + at);
                for (int64_t row = 0; row < queries; ++row)
                    sum[row][column] = multiply_add(value[row], part, sum[row][column]);
            }
        }
        for (int64_t row = 0; row < queries; ++row) {
            float four[4];
            sums(sum[row][0], sum[row][1], sum[row][2], sum[row][3], four);
            for (int64_t column = 0; column < left; ++column)
                scores[row][start + column] = four[column] * scale;
        }
    }
}

// Scores become weights e^(score - largest), zero outside [from, to).
inline void weigh(float* scores, int64_t from, int64_t to, int64_t keys, float& largest,
                  float& total) {
    for (int64_t at = 0; at < from; ++at) scores[at] = -INFINITY;
    const int64_t padded = (std::max(keys, to) + LANES - 1) / LANES * LANES;
    for (int64_t at = to; at < padded; ++at) scores[at] = -INFINITY;
    Vector top = splat(-INFINITY);
    for (int64_t at = 0; at < padded; at += LANES) top = maximum(top, load(scores + at));
    largest = maximum(top);
    Vector all = splat(0.0f);
    for (int64_t at = 0; at < padded; at += LANES) {
        const Vector weight = exponential(load(scores + at) - splat(largest));
        store(scores + at, weight);
        all += weight;
    }
    total = sum(all);
}

// The weighted sums of `vectors` vectors of the values, from `start` on.
template <int64_t queries, int64_t vectors, typename Stored>
void mix_part(const float (*weights)[SPAN], const Stored* const* values, int64_t from, int64_t to,
              int64_t start, float* const* result) {
    Vector sum[queries][vectors] = {};
    for (int64_t key = from; key < to; ++key) {
        Vector weight[queries];
        for (int64_t row = 0; row < queries; ++row) weight[row] = splat(weights[row][key]);
        for (int64_t at = 0; at < vectors; ++at) {
            const Vector part = load(values[key] + start + at * LANES);
            for (int64_t row = 0; row < queries; ++row)
                sum[row][at] = multiply_add(part, weight[row], sum[row][at]);
        }
    }
    for (int64_t row = 0; row < queries; ++row)
        for (int64_t at = 0; at < vectors; ++at)
            store(result[row] + start + at * LANES, sum[row][at]);
}

template <int64_t queries, typename Stored>
void mix(const float (*weights)[SPAN], const Stored* const* values, int64_t from, int64_t to,
         int64_t head_dim, float* const* result) {
    int64_t start = 0;
    for (; start + 4 * LANES <= head_dim; start += 4 * LANES)
        mix_part<queries, 4>(weights, values, from, to, start, result);
    for (; start < head_dim; start += LANES)
        mix_part<queries, 1>(weights, values, from, to, start, result);
}

// One tile of queries over one span: entries[i] with query head heads[i].
struct Tile {
    const Entry* entry[QUERIES];
    const float* query[QUERIES];
    int64_t place[QUERIES];  // entry number * heads + head, where the sums go
};

template <int64_t queries, typename Stored>
void attend_tile(const Tile& tile, const Span<Stored>& span, int64_t head_dim, float scale,
                 Partials& partials) {
    alignas(32) float scores[queries][SPAN];
    int64_t from = SPAN, to = 0;
    for (int64_t row = 0; row < queries; ++row) {
        from = std::min(from, tile.entry[row]->from);
        to = std::max(to, tile.entry[row]->to);
    }
    score<queries>(tile.query, span.keys, to, head_dim, scale, scores);
    float* results[queries];
    for (int64_t row = 0; row < queries; ++row) {
        const int64_t place = tile.place[row];
        weigh(scores[row], tile.entry[row]->from, tile.entry[row]->to, to, partials.largest[place],
              partials.total[place]);
        results[row] = partials.values.data() + place * head_dim;
    }
    mix<queries>(scores, span.values, from, to, head_dim, results);
}

template <typename Stored>
void attend_task(const Plan& plan, const Task& task, const Heads& heads, int64_t key_head,
                 const float* queries, int64_t stride, const Span<Stored>& span, float scale,
                 Partials& partials) {
    const Item& item = plan.items[task.item];
    const int64_t group = heads.group(), count = (task.end - task.start) * group;
    for (int64_t start = 0; start < count; start += QUERIES) {
        const int64_t rows = std::min(QUERIES, count - start);
        Tile tile;
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = task.start + (start + row) / group;
            const int64_t head = key_head * group + (start + row) % group;
            tile.entry[row] = &item.entries[at];
            tile.query[row] = queries + item.entries[at].row * stride + head * heads.dim;
            tile.place[row] = (item.first_entry + at) * heads.query + head;
        }
        switch (rows) {
            case 1: attend_tile<1>(tile, span, heads.dim, scale, partials); break;
            case 2: attend_tile<2>(tile, span, heads.dim, scale, partials); break;
            default: attend_tile<3>(tile, span, heads.dim, scale, partials); break;
        }
    }
}

template void attend_task(const Plan&, const Task&, const Heads&, int64_t, const float*, int64_t,
                          const Span<float>&, float, Partials&);
template void attend_task(const Plan&, const Task&, const Heads&, int64_t, const float*, int64_t,
                          const Span<Float16>&, float, Partials&);

}  // namespace decodery
