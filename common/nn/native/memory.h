// Buffers that go back to a pool: fresh memory costs several times a copy, as the system clears it page by page.
#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace metasearch {

class Pool {
   public:
    static Pool& shared() {
        static Pool* pool = new Pool();  // outlives whatever still holds buffers when the process ends
        return *pool;
    }
    void* take(size_t bytes) {
        {
            const std::lock_guard<std::mutex> guard(lock_);
            const auto found = free_.lower_bound(bytes);
            if (found != free_.end() && found->first <= bytes + bytes / 4) {
                void* data = found->second;
                held_ -= found->first;
                sizes_[data] = found->first;
                free_.erase(found);
                return data;
            }
        }
        void* data = fresh(bytes);
        if (data == nullptr) {
            clear();
            data = fresh(bytes);
            if (data == nullptr) throw std::bad_alloc();
        }
        const std::lock_guard<std::mutex> guard(lock_);
        sizes_[data] = bytes;
        return data;
    }
    void give(void* data) {
        const std::lock_guard<std::mutex> guard(lock_);
        const auto found = sizes_.find(data);
        free_.emplace(found->second, data);
        held_ += found->second;
        sizes_.erase(found);
    }
    // Returns what is free to the system.
    void clear() {
        const std::lock_guard<std::mutex> guard(lock_);
        for (const auto& entry : free_) std::free(entry.second);
        free_.clear();
        held_ = 0;
    }
    size_t held() {
        const std::lock_guard<std::mutex> guard(lock_);
        return held_;
    }

   private:
    // Large buffers lie on huge pages where the system has them: less to look up, and to clear, page by page.
    static void* fresh(size_t bytes) {
        constexpr size_t VECTOR = 64, HUGE_PAGE = size_t(2) << 20;
        const size_t alignment = bytes < HUGE_PAGE ? VECTOR : HUGE_PAGE;
        const size_t whole = (bytes + alignment - 1) / alignment * alignment;
        void* data = std::aligned_alloc(alignment, whole);
#ifdef __linux__
        if (data != nullptr && alignment == HUGE_PAGE) madvise(data, whole, MADV_HUGEPAGE);
#endif
        return data;
    }
    std::mutex lock_;
    std::multimap<size_t, void*> free_;
    std::map<void*, size_t> sizes_;
    size_t held_ = 0;
};

// An array of numbers, uninitialised: NaN where METASEARCH_POISON is defined, so that tests see what is read unwritten.
template <class Real>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(size_t size)
        : data_(static_cast<Real*>(Pool::shared().take((size ? size : 1) * sizeof(Real)))), size_(size) {
#ifdef METASEARCH_POISON
        std::memset(static_cast<void*>(data_), 0xFF, (size ? size : 1) * sizeof(Real));
#endif
    }
    Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Buffer() {
        if (data_ != nullptr) Pool::shared().give(data_);
    }
    Real* data() { return data_; }
    const Real* data() const { return data_; }
    size_t size() const { return size_; }
    void zero() {
        for (size_t i = 0; i < size_; ++i) data_[i] = 0;
    }

   private:
    Real* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace metasearch
