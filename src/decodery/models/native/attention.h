// Attention of new nodes over their paths, each key read once for all the nodes that see it.
//
// A path is cut at depths 0, 128, 256, ...: a span is the slots of one such stretch. Paths that share
// a span (branches of a prompt, the rows of a prompt itself) share one item: its keys are read once,
// and every node that sees it computes softmax sums over it. A node's spans are then merged in the
// order of depth. A node's result depends on the keys of its path by depth and on nothing else: not
// on slots, nor on who shares a span, nor on threads.

#pragma once

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "simd.h"

namespace decodery {

constexpr int64_t SPAN = 128;        // depths of a span
constexpr int64_t QUERIES = 3;       // queries of a register tile
constexpr int64_t ENTRY_BLOCK = 64;  // nodes one task handles

// The new nodes of a forward, grouped in clumps that hang together, each under an old path.
struct Forest {
    int64_t count;             // new nodes
    const int64_t* tokens;     // [count]
    const int64_t* positions;  // [count] depth of each, 0 for the first token of a path
    const int64_t* slots;      // [count] where its key and value go
    int64_t clumps;
    const int64_t* sizes;      // [clumps] nodes of each
    const int64_t* rows;       // [count] the nodes of the clumps, one clump after the other
    const int64_t* parents;    // [count] index within the clump, -1 under the old path
    const int64_t* run_counts; // [clumps] runs of slots that make the old path of each
    const int64_t* runs;       // [2 * sum] start and end of each run, in the order of depth
};

// Keys and values [layers, kv_heads, slots, head_dim], float32 or float16.
struct Cache {
    void* keys;
    void* values;
    int64_t slots;
    int32_t is_half;
};

struct Entry {
    int64_t row;
    int64_t from, to;  // the keys of the item that the node sees
};

struct Item {
    std::vector<int64_t> slots;
    std::vector<Entry> entries;
    int64_t first_entry = 0;  // number of its first entry among all entries of the plan
};

struct Task {
    int64_t item, start, end;  // some entries of an item
};

// What every new node looks at, for layers with one window.
struct Plan {
    std::vector<Item> items;
    std::vector<Task> tasks;
    std::vector<std::vector<int64_t>> parts;  // of each node: its entries, in the order of depth
    int64_t entries = 0;
};

class Planner {
   public:
    Planner(const Forest& forest, int64_t window) : forest_(forest), window_(window) {
        plan_.parts.resize(forest.count);
        const int64_t* rows = forest.rows;
        const int64_t* parents = forest.parents;
        const int64_t* runs = forest.runs;
        for (int64_t clump = 0; clump < forest.clumps; ++clump) {
            add_clump(rows, parents, forest.sizes[clump], runs, forest.run_counts[clump]);
            rows += forest.sizes[clump];
            parents += forest.sizes[clump];
            runs += 2 * forest.run_counts[clump];
        }
        number();
    }

    Plan take() { return std::move(plan_); }

   private:
    void add_clump(const int64_t* rows, const int64_t* parents, int64_t size, const int64_t* runs,
                   int64_t run_count) {
        std::vector<int64_t> base;
        for (int64_t run = 0; run < run_count; ++run)
            for (int64_t slot = runs[2 * run]; slot < runs[2 * run + 1]; ++slot)
                base.push_back(slot);
        const int64_t whole = static_cast<int64_t>(base.size()) / SPAN;
        for (int64_t span = 0; span < whole; ++span) add_base_span(base, span, rows, size);
        bool is_chain = true;
        for (int64_t at = 0; at < size; ++at) is_chain = is_chain && parents[at] == at - 1;
        const std::vector<int64_t> tail(base.begin() + whole * SPAN, base.end());
        if (is_chain) {
            add_tail(tail, whole, rows, size, size);
            return;
        }
        for (int64_t at = 0; at < size; ++at) {  // each node of a tree has a path of its own
            std::vector<int64_t> path;
            for (int64_t node = at; node >= 0; node = parents[node]) path.push_back(rows[node]);
            std::reverse(path.begin(), path.end());
            add_tail(tail, whole, path.data(), static_cast<int64_t>(path.size()), 1);
        }
    }

    // A span that lies in the old path. A slot belongs to one node and a node has one path, so the
    // last slot names the span.
    void add_base_span(const std::vector<int64_t>& base, int64_t span, const int64_t* rows,
                       int64_t size) {
        const auto start = base.begin() + span * SPAN;
        const auto [found, is_new] =
            shared_.try_emplace(start[SPAN - 1], static_cast<int64_t>(plan_.items.size()));
        if (is_new) {
            plan_.items.emplace_back();
            plan_.items.back().slots.assign(start, start + SPAN);
        }
        for (int64_t at = 0; at < size; ++at) see(found->second, span * SPAN, SPAN, rows[at]);
    }

    // The end of an old path and a chain of new nodes below it, of which the last `seeing` look.
    void add_tail(const std::vector<int64_t>& tail, int64_t whole, const int64_t* chain,
                  int64_t length, int64_t seeing) {
        std::vector<int64_t> slots = tail;
        for (int64_t at = 0; at < length; ++at) slots.push_back(forest_.slots[chain[at]]);
        const int64_t count = static_cast<int64_t>(slots.size());
        for (int64_t start = 0; start < count; start += SPAN) {
            const int64_t keys = std::min(SPAN, count - start);
            plan_.items.emplace_back();
            plan_.items.back().slots.assign(slots.begin() + start, slots.begin() + start + keys);
            const int64_t item = static_cast<int64_t>(plan_.items.size()) - 1;
            for (int64_t at = length - seeing; at < length; ++at)
                see(item, whole * SPAN + start, keys, chain[at]);
        }
    }

    // `row` sees the keys of an item that starts at depth `start`, up to its own and in its window.
    void see(int64_t item, int64_t start, int64_t keys, int64_t row) {
        const int64_t own = forest_.positions[row];
        const int64_t from = window_ > 0 ? std::max<int64_t>(0, own + 1 - window_ - start) : 0;
        const int64_t to = std::min(keys, own + 1 - start);
        if (from < to) plan_.items[item].entries.push_back({row, from, to});
    }

    // Items were added in the order of depth for each node; entries get their numbers so.
    void number() {
        for (int64_t at = 0; at < static_cast<int64_t>(plan_.items.size()); ++at) {
            Item& item = plan_.items[at];
            item.first_entry = plan_.entries;
            const int64_t count = static_cast<int64_t>(item.entries.size());
            for (int64_t entry = 0; entry < count; ++entry)
                plan_.parts[item.entries[entry].row].push_back(plan_.entries + entry);
            for (int64_t start = 0; start < count; start += ENTRY_BLOCK)
                plan_.tasks.push_back({at, start, std::min(count, start + ENTRY_BLOCK)});
            plan_.entries += count;
        }
    }

    const Forest& forest_;
    const int64_t window_;
    std::unordered_map<int64_t, int64_t> shared_;
    Plan plan_;
};

// The softmax sums of one query over one span: largest score, sum of weights, weighted values.
struct Partials {
    std::vector<float> largest, total;  // [entries, heads]
    std::vector<float> values;          // [entries, heads, head_dim]
    const int64_t heads, head_dim;

    Partials(int64_t heads, int64_t head_dim) : heads(heads), head_dim(head_dim) {}

    void make_room(int64_t entries) {
        if (static_cast<int64_t>(total.size()) >= entries * heads) return;
        largest.resize(entries * heads);
        total.resize(entries * heads);
        values.resize(entries * heads * head_dim);
    }
};

// Where the keys and values of a span are, [head_dim] each.
template <typename Stored>
struct Span {
    const Stored* keys[SPAN];
    const Stored* values[SPAN];

    // In a cache, for one layer and head: the first slots of its keys and values.
    Span(const void* first_key, const void* first_value, const std::vector<int64_t>& slots,
         int64_t head_dim) {
        for (size_t at = 0; at < slots.size(); ++at) {
            keys[at] = static_cast<const Stored*>(first_key) + slots[at] * head_dim;
            values[at] = static_cast<const Stored*>(first_value) + slots[at] * head_dim;
        }
    }
};

// The same span in float32, in room for 2 * SPAN * head_dim floats.
template <typename Stored>
Span<float> converted(const Span<Stored>& span, const std::vector<int64_t>& slots, int64_t head_dim,
                      float* room) {
    float* keys = room;
    float* values = room + SPAN * head_dim;
    Span<float> result(keys, values, {}, head_dim);
    for (size_t at = 0; at < slots.size(); ++at, keys += head_dim, values += head_dim) {
        result.keys[at] = keys;
        result.values[at] = values;
        for (int64_t lane = 0; lane < head_dim; lane += LANES) {
            store(keys + lane, load(span.keys[at] + lane));
            store(values + lane, load(span.values[at] + lane));
        }
    }
    return result;
}

struct Heads {
    int64_t query, key, dim;
    int64_t group() const { return query / key; }
};

// Some nodes of an item, one key head: queries [count, heads.query, heads.dim] (tiles.cpp).
template <typename Stored>
void attend_task(const Plan& plan, const Task& task, const Heads& heads, int64_t key_head,
                 const float* queries, int64_t stride, const Span<Stored>& span, float scale,
                 Partials& partials);

// Merges a node's spans in the order of depth and divides: one head's result [head_dim].
inline void merge_parts(const std::vector<int64_t>& parts, int64_t head, const Partials& partials,
                        float* to) {
    const int64_t dim = partials.head_dim;
    float largest = -INFINITY, total = 0.0f;
    for (int64_t at = 0; at < dim; at += LANES) store(to + at, splat(0.0f));
    for (const int64_t part : parts) {
        const int64_t place = part * partials.heads + head;
        const float top = std::max(largest, partials.largest[place]);
        const Vector scales = exponential(Vector{largest - top, partials.largest[place] - top});
        const float old = scales[0], added = scales[1];
        total = total * old + partials.total[place] * added;
        const float* values = partials.values.data() + place * dim;
        for (int64_t at = 0; at < dim; at += LANES)
            store(to + at, multiply_add(load(values + at), splat(added),
                                        load(to + at) * splat(old)));
        largest = top;
    }
    for (int64_t at = 0; at < dim; at += LANES) store(to + at, load(to + at) / splat(total));
}

}  // namespace decodery
