// Threads that share the steps of one piece of work and never wait for each other's arrival.
//
// A job is a fixed sequence of steps, each a number of tasks. Every member of the crew walks through
// the same steps and takes tasks until none is left; a step is over when its tasks are done, not when
// all members have come. A member that the system has put aside costs its share of the work and no
// more, so a busy machine slows a job down in proportion; with barriers it would stand still for a
// time slice at every step.

#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace decodery {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

struct alignas(64) Step {
    std::atomic<int64_t> taken{0}, done{0};
};

class Member;

// A piece of work. It must own, or copy, whatever it reads outside of tasks: a member that comes late
// may still walk through it when the work is done and `run` has returned.
class Job {
   public:
    explicit Job(int64_t steps) : steps_(steps) {}
    virtual ~Job() = default;
    virtual void work(Member& member) = 0;

   private:
    friend class Member;
    friend class Crew;
    std::vector<Step> steps_;
    std::atomic<int> members_{0};
    int most_ = 1;
};

class Member {
   public:
    Member(Job& job, int index) : index(index), job_(job) {}

    const int index;  // 0 for the caller of `run`

    // How many threads there may be, this one among them.
    int64_t crew_size() const { return job_.most_; }

    // Runs task(i) for i in [0, count), in chunks, with the rest of the crew; all are done on return.
    template <typename Task>
    void each(int64_t count, int64_t chunk, const Task& task) {
        Step& step = job_.steps_[at_++];
        const int64_t chunks = (count + chunk - 1) / chunk;
        while (step.taken.load(std::memory_order_relaxed) < chunks) {
            const int64_t mine = step.taken.fetch_add(1, std::memory_order_relaxed);
            if (mine >= chunks) break;
            const int64_t end = count < (mine + 1) * chunk ? count : (mine + 1) * chunk;
            for (int64_t item = mine * chunk; item < end; ++item) task(item);
            step.done.fetch_add(1, std::memory_order_release);
        }
        for (int turns = 0; step.done.load(std::memory_order_acquire) < chunks; ++turns) {
            if (turns < 2000)
                pause();
            else
                std::this_thread::yield();  // whoever has the last task may need this processor
        }
    }

   private:
    Job& job_;
    int64_t at_ = 0;
};

class Crew {
   public:
    // Does a job with up to `threads` threads, the caller's among them.
    static void run(const std::shared_ptr<Job>& job, int threads) {
        job->most_ = threads;
        if (threads > 1) crew().offer(job);
        Member caller(*job, 0);
        job->work(caller);
        if (threads > 1) crew().withdraw(job);
    }

   private:
    // Never destroyed: its threads end with the process. A forked child has none of them, and whatever
    // they held at that moment stays held: it gets a crew of its own.
    static Crew& crew() {
        static std::atomic<Crew*> all{new Crew};
        static const int watching = pthread_atfork(nullptr, nullptr, [] { all = new Crew; });
        static_cast<void>(watching);
        return *all;
    }

    void offer(const std::shared_ptr<Job>& job) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            job_ = job;
            hire(job->most_ - 1);
            offers_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
    }

    void hire(int helpers) {
        try {
            for (; hired_ < helpers; ++hired_) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {  // no more threads to be had: those there are do it
        }
    }

    void withdraw(const std::shared_ptr<Job>& job) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (job_ == job) job_.reset();
    }

    void serve() {
        int64_t seen = 0;
        for (;;) {
            wait_briefly(seen);
            std::shared_ptr<Job> job;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return offers_.load() != seen; });
                seen = offers_.load();
                job = job_;
            }
            if (!job) continue;
            const int index = job->members_.fetch_add(1) + 1;
            if (index >= job->most_) continue;
            Member member(*job, index);
            job->work(member);
        }
    }

    // The next job of a decoding step mostly follows at once; sleeping costs more than this.
    void wait_briefly(int64_t seen) const {
        const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
        while (offers_.load(std::memory_order_acquire) == seen) {
            for (int turn = 0; turn < 50; ++turn) pause();
            if (std::chrono::steady_clock::now() > end) return;
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::shared_ptr<Job> job_;
    std::atomic<int64_t> offers_{0};
    int hired_ = 0;
};

}  // namespace decodery
