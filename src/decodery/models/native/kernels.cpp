// Linear layers on a CPU, written so that a row's result does not depend on the other rows.
//
// A packed weight holds panels of 16 outputs: for each input, the 16 weights side by side, so a
// panel is read once from front to back whatever the number of rows. Each output of each row is a sum
// of chains of multiply-adds over 256 inputs each, in order. Tiles of 1 to 6 rows run the same chains
// for each row, and a panel belongs to one thread: results are bitwise the same for any number of
// rows, any place in the batch and any number of threads. Sums are float32; weights are float32 or
// bfloat16. One row runs at the speed of memory.

#include <cstdint>

namespace {

constexpr int64_t PANEL = 16;
constexpr int64_t ROWS = 6;
constexpr int64_t CHAIN = 256;  // inputs a chain runs over before it is added to the sum

typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(32)));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }

// bfloat16 is the upper half of a float32.
inline Vector load(const uint16_t* from) {
    const Halves halves = *reinterpret_cast<const Halves*>(from);
    const Words words = __builtin_convertvector(halves, Words) << 16;
    return reinterpret_cast<const Vector&>(words);
}

template <int64_t rows, typename Weight>
void tile(const float* x, const Weight* panel, const float* bias, float* y, int64_t inputs,
          int64_t outputs, int64_t columns) {
    Vector sums[rows][2] = {};
    for (int64_t start = 0; start < inputs; start += CHAIN) {
        const int64_t end = inputs - start < CHAIN ? inputs : start + CHAIN;
        Vector low[rows], high[rows];
        for (int64_t row = 0; row < rows; ++row) low[row] = high[row] = Vector{};
        for (int64_t input = start; input < end; ++input) {
            const Vector first = load(panel + input * PANEL);
            const Vector second = load(panel + input * PANEL + 8);
            for (int64_t row = 0; row < rows; ++row) {
                const float value = x[row * inputs + input];
                low[row] += first * value;
                high[row] += second * value;
            }
        }
        for (int64_t row = 0; row < rows; ++row) {
            sums[row][0] += low[row];
            sums[row][1] += high[row];
        }
    }
    for (int64_t row = 0; row < rows; ++row) {
        float* out = y + row * outputs;
        for (int64_t column = 0; column < columns; ++column) {
            const float sum = sums[row][column / 8][column % 8];
            out[column] = bias ? sum + bias[column] : sum;
        }
    }
}

template <typename Weight>
void some_rows(int64_t rows, const float* x, const Weight* panel, const float* bias, float* y,
               int64_t inputs, int64_t outputs, int64_t columns) {
    switch (rows) {
        case 1: tile<1>(x, panel, bias, y, inputs, outputs, columns); break;
        case 2: tile<2>(x, panel, bias, y, inputs, outputs, columns); break;
        case 3: tile<3>(x, panel, bias, y, inputs, outputs, columns); break;
        case 4: tile<4>(x, panel, bias, y, inputs, outputs, columns); break;
        case 5: tile<5>(x, panel, bias, y, inputs, outputs, columns); break;
        default: tile<6>(x, panel, bias, y, inputs, outputs, columns); break;
    }
}

template <typename Weight>
void pack(const Weight* weight, Weight* packed, int64_t outputs, int64_t inputs) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < panels; ++panel) {
        Weight* into = packed + panel * inputs * PANEL;
        for (int64_t column = 0; column < PANEL; ++column) {
            const int64_t output = panel * PANEL + column;
            for (int64_t input = 0; input < inputs; ++input)
                into[input * PANEL + column] =
                    output < outputs ? weight[output * inputs + input] : Weight{0};
        }
    }
}

template <typename Weight>
void linear(const float* x, const Weight* packed, const float* bias, float* y, int64_t rows,
            int64_t inputs, int64_t outputs, int threads) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t start = panel * PANEL;
        const int64_t columns = outputs - start < PANEL ? outputs - start : PANEL;
        for (int64_t row = 0; row < rows; row += ROWS)
            some_rows(rows - row < ROWS ? rows - row : ROWS, x + row * inputs,
                      packed + panel * inputs * PANEL, bias ? bias + start : nullptr,
                      y + row * outputs + start, inputs, outputs, columns);
    }
}

}  // namespace

extern "C" {

// weight [outputs, inputs] row-major -> packed [ceil(outputs / 16), inputs, 16], padded with zeros.
void decodery_pack_float32(const float* weight, float* packed, int64_t outputs, int64_t inputs) {
    pack(weight, packed, outputs, inputs);
}
void decodery_pack_bfloat16(const uint16_t* weight, uint16_t* packed, int64_t outputs,
                            int64_t inputs) {
    pack(weight, packed, outputs, inputs);
}

// x [rows, inputs] times the packed weight, plus bias [outputs] or null -> y [rows, outputs].
void decodery_linear_float32(const float* x, const float* packed, const float* bias, float* y,
                             int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    linear(x, packed, bias, y, rows, inputs, outputs, threads);
}
void decodery_linear_bfloat16(const float* x, const uint16_t* packed, const float* bias, float* y,
                              int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    linear(x, packed, bias, y, rows, inputs, outputs, threads);
}

}  // extern "C"
