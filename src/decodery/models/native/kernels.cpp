// The Llama family's forward pass in one call, and its pieces, behind a C interface.
//
// A crew of threads walks through norms, linear layers and attention (crew.h). Every step works row
// by row and in a fixed order, so a node's hidden state is bitwise the same in any batch and with any
// number of threads. See matrix.h and attention.h.

#include <new>

#include "attention.h"
#include "crew.h"
#include "matrix.h"
#include "simd.h"

namespace decodery {

enum Activation : int32_t { SILU = 0, GELU = 1, GELU_TANH = 2 };

// Norm weights are [width]; null stands for a norm the layer does not have. Matrices that make one
// result side by side are one matrix where they are of one kind, else up to three or two, the rest
// null.
struct Layer {
    const float* attention_norm;
    Matrix qkv[3];           // width -> (heads + 2 kv_heads) * head_dim
    const float* head_norm;  // [heads + kv_heads, head_dim]
    Matrix output;           // heads * head_dim -> width
    const float* after_attention_norm;
    const float* feed_forward_norm;
    Matrix gate_up[2];       // width -> 2 feed_forward
    Matrix down;             // feed_forward -> width
    const float* after_feed_forward_norm;
    const float* frequencies;  // [head_dim / 2] radians a position, null without rope
    float magnitude;           // factor on cosine and sine
    int64_t window;            // depths a node sees, itself included; 0 is all
};

struct Stack {
    int64_t count;  // of layers
    const Layer* layers;
    Matrix embedding;  // outputs are tokens
    const float* norm;
    int64_t width, heads, kv_heads, head_dim, feed_forward;
    float embedding_scale, epsilon, attention_scale;
    int32_t activation;
};

// x / (sqrt(mean of squares + epsilon)) * weight over `width` values.
inline void rms_norm(const float* x, const float* weight, int64_t width, float epsilon, float* to) {
    Vector squares = splat(0.0f);
    int64_t at = 0;
    for (; at + LANES <= width; at += LANES) squares = multiply_add(load(x + at), load(x + at), squares);
    float all = sum(squares);
    for (int64_t rest = at; rest < width; ++rest) all += x[rest] * x[rest];
    const float scale = 1.0f / std::sqrt(all / static_cast<float>(width) + epsilon);
    for (at = 0; at < width; ++at) to[at] = x[at] * scale * weight[at];
}

inline Vector activated(Vector x, int32_t kind) {
    if (kind == SILU) return x / (exponential(-x) + splat(1.0f));
    if (kind == GELU_TANH) {  // tanh(z) = 1 - 2 / (e^2z + 1)
        const Vector inner = (x * x * x * splat(0.044715f) + x) * splat(0.7978845608f);
        const Vector tanh = splat(1.0f) - splat(2.0f) / (exponential(inner + inner) + splat(1.0f));
        return (tanh + splat(1.0f)) * x * splat(0.5f);
    }
    Vector result;
    for (int64_t lane = 0; lane < LANES; ++lane)
        result[lane] = 0.5f * x[lane] * (1.0f + std::erf(x[lane] * 0.70710678f));
    return result;
}

// Cosines and sines [count, head_dim / 2] of the new nodes' positions.
struct Turns {
    std::vector<float> cosines, sines;

    Turns(const Forest& forest, const float* frequencies, float magnitude, int64_t half)
        : cosines(forest.count * half), sines(forest.count * half) {
        for (int64_t row = 0; row < forest.count; ++row) {
            for (int64_t at = 0; at < half; ++at) {
                const float angle = static_cast<float>(forest.positions[row]) * frequencies[at];
                cosines[row * half + at] = std::cos(angle) * magnitude;
                sines[row * half + at] = std::sin(angle) * magnitude;
            }
        }
    }
};

// The pairs (i, i + head_dim / 2) of a head turn.
inline void rotate(float* head, const float* cosine, const float* sine, int64_t half) {
    for (int64_t at = 0; at < half; ++at) {
        const float first = head[at], second = head[at + half];
        head[at] = first * cosine[at] - second * sine[at];
        head[at + half] = second * cosine[at] + first * sine[at];
    }
}

// One forward. Copies what its members read between tasks (see crew.h); weights, cache and `hidden`
// are touched in tasks alone.
class Forward : public Job {
   public:
    Forward(const Stack& stack, const Forest& forest, const Cache& cache, float* hidden, int threads)
        : Job(2 + stack.count * STEPS), stack_(stack),
          layers_(stack.layers, stack.layers + stack.count), forest_(forest), cache_(cache),
          hidden_(hidden), count_(forest.count), width_(stack.width), inner_width_(stack.feed_forward),
          heads_{stack.heads, stack.kv_heads, stack.head_dim},
          states_width_((stack.heads + 2 * stack.kv_heads) * stack.head_dim),
          attended_width_(stack.heads * stack.head_dim), x_(count_ * width_),
          normed_(count_ * width_), states_(count_ * states_width_),
          attended_(count_ * attended_width_), gate_up_(count_ * 2 * inner_width_),
          inner_(count_ * inner_width_), branch_(count_ * width_),
          normed_rows_(count_, width_, normed_.data(), has_codes()),
          attended_rows_(count_, attended_width_, attended_.data(), has_codes()),
          inner_rows_(count_, inner_width_, inner_.data(), has_codes()),
          spans_(threads, std::vector<float>(2 * SPAN * stack.head_dim)),
          partials_(heads_.query, heads_.dim) {
        for (const Layer& layer : layers_) {
            if (!plans_.count(layer.window))
                plans_.emplace(layer.window, Planner(forest, layer.window).take());
            partials_.make_room(plans_.at(layer.window).entries);
            if (layer.frequencies && !turns_.count(layer.frequencies))
                turns_.emplace(layer.frequencies, Turns(forest, layer.frequencies, layer.magnitude,
                                                        stack.head_dim / 2));
        }
    }

    void work(Member& member) override {
        embed(member);
        for (int64_t at = 0; at < stack_.count; ++at) {
            const Layer& layer = layers_[at];
            norm(member, layer.attention_norm);
            multiply_all(member, layer.qkv, 3, states_.data(), states_width_);
            place(member, layer, at);
            attend(member, layer, at);
            merge(member, layer);
            add_branch(member, layer.output, attended_rows_, layer.after_attention_norm);
            norm(member, layer.feed_forward_norm);
            multiply_all(member, layer.gate_up, 2, gate_up_.data(), 2 * inner_width_);
            activate(member);
            add_branch(member, layer.down, inner_rows_, layer.after_feed_forward_norm);
        }
        member.each(count_, ROW_CHUNK, [&](int64_t row) {
            rms_norm(&x_[row * width_], stack_.norm, width_, stack_.epsilon, hidden_ + row * width_);
        });
    }

   private:
    static constexpr int64_t STEPS = 15;  // of a layer, at most

    bool has_codes() const {
        const auto coded = [](const Matrix& matrix) { return is_coded(matrix); };
        return std::any_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
            return std::any_of(layer.qkv, layer.qkv + 3, coded) || is_coded(layer.output) ||
                   std::any_of(layer.gate_up, layer.gate_up + 2, coded) || is_coded(layer.down);
        });
    }

    void multiply_all(Member& member, const Matrix* matrices, int64_t most, float* y,
                      int64_t stride) {
        for (int64_t at = 0; at < most && matrices[at].panels; y += matrices[at++].outputs)
            multiply(member, matrices[at], normed_rows_, {y, stride, false});
    }

    void embed(Member& member) {
        member.each(count_, ROW_CHUNK, [&](int64_t row) {
            float* to = &x_[row * width_];
            unpack_output(stack_.embedding, forest_.tokens[row], to);
            for (int64_t at = 0; at < width_; ++at) to[at] *= stack_.embedding_scale;
        });
    }

    void norm(Member& member, const float* weight) {
        member.each(count_, ROW_CHUNK, [&](int64_t row) {
            const int64_t start = row * width_;
            rms_norm(&x_[start], weight, width_, stack_.epsilon, &normed_[start]);
            if (normed_rows_.coded()) normed_rows_.round(row, 0, width_);
        });
    }

    // Norms and turns queries and keys, and puts keys and values into the cache.
    void place(Member& member, const Layer& layer, int64_t index) {
        const int64_t dim = heads_.dim, half = dim / 2, turned = heads_.query + heads_.key;
        const Turns* turns = layer.frequencies ? &turns_.at(layer.frequencies) : nullptr;
        member.each(count_, ROW_CHUNK, [&](int64_t row) {
            float* states = &states_[row * states_width_];
            for (int64_t head = 0; head < turned; ++head) {
                float* at = states + head * dim;
                if (layer.head_norm)
                    rms_norm(at, layer.head_norm + head * dim, dim, stack_.epsilon, at);
                if (turns) rotate(at, &turns->cosines[row * half], &turns->sines[row * half], half);
            }
            for (int64_t head = 0; head < heads_.key; ++head) {
                const int64_t to = offset(index, head) + forest_.slots[row] * dim;
                keep(states + (heads_.query + head) * dim, cache_.keys, to);
                keep(states + (turned + head) * dim, cache_.values, to);
            }
        });
    }

    int64_t offset(int64_t layer, int64_t head) const {
        return (layer * heads_.key + head) * cache_.slots * heads_.dim;
    }

    void keep(const float* from, void* cache, int64_t to) const {
        for (int64_t at = 0; at < heads_.dim; at += LANES) {
            if (cache_.is_half)
                store(static_cast<Float16*>(cache) + to + at, load(from + at));
            else
                store(static_cast<float*>(cache) + to + at, load(from + at));
        }
    }

    void attend(Member& member, const Layer& layer, int64_t index) {
        const Plan& plan = plans_.at(layer.window);
        const int64_t tasks = static_cast<int64_t>(plan.tasks.size());
        member.each(tasks * heads_.key, 1, [&](int64_t number) {
            const Task& task = plan.tasks[number / heads_.key];
            const int64_t head = number % heads_.key;
            const int64_t bytes = offset(index, head) * (cache_.is_half ? 2 : 4);
            const void* keys = static_cast<const uint8_t*>(cache_.keys) + bytes;
            const void* values = static_cast<const uint8_t*>(cache_.values) + bytes;
            const std::vector<int64_t>& slots = plan.items[task.item].slots;
            if (!cache_.is_half)
                return attend(plan, task, head, Span<float>(keys, values, slots, heads_.dim));
            const Span<Float16> span(keys, values, slots, heads_.dim);
            if ((task.end - task.start) * heads_.group() <= 2 * QUERIES)
                return attend(plan, task, head, span);
            // Many nodes look at these keys: they are converted once.
            float* room = spans_[member.index].data();
            attend(plan, task, head, converted(span, slots, heads_.dim, room));
        });
    }

    template <typename Stored>
    void attend(const Plan& plan, const Task& task, int64_t head, const Span<Stored>& span) {
        attend_task(plan, task, heads_, head, states_.data(), states_width_, span,
                    stack_.attention_scale, partials_);
    }

    void merge(Member& member, const Layer& layer) {
        const Plan& plan = plans_.at(layer.window);
        member.each(count_, ROW_CHUNK, [&](int64_t row) {
            for (int64_t head = 0; head < heads_.query; ++head)
                merge_parts(plan.parts[row], head, partials_,
                            &attended_[row * attended_width_ + head * heads_.dim]);
            if (attended_rows_.coded()) attended_rows_.round(row, 0, attended_width_);
        });
    }

    // x += norm(matrix * rows); without a norm in one step.
    void add_branch(Member& member, const Matrix& matrix, const Rows& rows, const float* after) {
        if (!after) return multiply(member, matrix, rows, {x_.data(), width_, true});
        multiply(member, matrix, rows, {branch_.data(), width_, false});
        member.each(count_, ROW_CHUNK, [&](int64_t row) {
            float* branch = &branch_[row * width_];
            rms_norm(branch, after, width_, stack_.epsilon, branch);
            for (int64_t at = 0; at < width_; ++at) x_[row * width_ + at] += branch[at];
        });
    }

    void activate(Member& member) {
        constexpr int64_t piece = 512;  // a multiple of 32, so that pieces round on their own
        const int64_t pieces = (inner_width_ + piece - 1) / piece;
        member.each(count_ * pieces, 1, [&](int64_t number) {
            const int64_t row = number / pieces, start = number % pieces * piece;
            const int64_t end = std::min(inner_width_, start + piece);
            const float* gate = &gate_up_[row * 2 * inner_width_];
            float* to = &inner_[row * inner_width_];
            for (int64_t at = start; at < end; at += LANES)
                store(to + at, activated(load(gate + at), stack_.activation) *
                                   load(gate + inner_width_ + at));
            if (inner_rows_.coded()) inner_rows_.round(row, start, end);
        });
    }

    const Stack stack_;
    const std::vector<Layer> layers_;
    const Forest forest_;
    const Cache cache_;
    float* const hidden_;
    const int64_t count_, width_, inner_width_;
    const Heads heads_;
    const int64_t states_width_, attended_width_;
    std::vector<float> x_, normed_, states_, attended_, gate_up_, inner_, branch_;
    Rows normed_rows_, attended_rows_, inner_rows_;
    std::vector<std::vector<float>> spans_;  // of each thread: keys and values of one span
    std::unordered_map<int64_t, Plan> plans_;
    std::unordered_map<const float*, Turns> turns_;
    Partials partials_;
};

// y [rows, outputs] = x [rows, inputs] times a matrix, plus its bias.
class Product : public Job {
   public:
    Product(const Matrix& matrix, const float* x, float* y, int64_t rows)
        : Job(2), matrix_(matrix), rows_(rows, matrix.inputs, x, is_coded(matrix)), y_(y) {}

    void work(Member& member) override {
        const int64_t rounded = rows_.coded() ? rows_.count : 0;
        member.each(rounded, ROW_CHUNK, [&](int64_t row) { rows_.round(row, 0, rows_.width); });
        multiply(member, matrix_, rows_, {y_, matrix_.outputs, false});
    }

   private:
    const Matrix matrix_;
    Rows rows_;
    float* const y_;
};

}  // namespace decodery

using namespace decodery;

extern "C" {

// What was compiled in, for messages: the widest of the instructions used.
const char* decodery_instructions() {
#ifdef DECODERY_VNNI
    return "AVX2 with VNNI";
#elif defined(DECODERY_AVX2)
    return "AVX2";
#else
    return "portable";
#endif
}

// Bytes of a matrix's panels.
int64_t decodery_packed_bytes(const Matrix* matrix) {
    return panels_of(*matrix) * panel_bytes(*matrix);
}

// weight [outputs, inputs], float32 or bfloat16 as the matrix's kind says -> panels.
void decodery_pack_floats(const Matrix* matrix, const void* weight, void* packed) {
    if (matrix->kind == FLOAT32)
        pack_floats(*matrix, static_cast<const uint32_t*>(weight), static_cast<uint32_t*>(packed));
    else
        pack_floats(*matrix, static_cast<const uint16_t*>(weight), static_cast<uint16_t*>(packed));
}

// codes [outputs, inputs] one a byte, scales and offsets [outputs, inputs / group] -> panels.
void decodery_pack_codes(const Matrix* matrix, const uint8_t* codes, const void* scales,
                         const void* offsets, uint8_t* packed) {
    if (matrix->half_scales)
        pack_codes(*matrix, codes, static_cast<const uint16_t*>(scales),
                   static_cast<const uint16_t*>(offsets), packed);
    else
        pack_codes(*matrix, codes, static_cast<const uint32_t*>(scales),
                   static_cast<const uint32_t*>(offsets), packed);
}

// x [rows, inputs] float32 times the matrix, plus its bias -> y [rows, outputs].
// Returns 0, or 1 when there was no memory.
int decodery_linear(const Matrix* matrix, const float* x, float* y, int64_t rows, int threads) {
    try {
        Crew::run(std::make_shared<Product>(*matrix, x, y, rows), threads);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// The hidden states [count, width] of a forest's new nodes after the last norm; their keys and values
// go into the cache. Returns 0, or 1 when there was no memory (nothing was then computed).
int decodery_hidden(const Stack* stack, const Forest* forest, const Cache* cache, float* hidden,
                    int threads) {
    try {
        Crew::run(std::make_shared<Forward>(*stack, *forest, *cache, hidden, threads), threads);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // extern "C"
