package tree

import (
	"fmt"
	"sync/atomic"
)

// A Pool is room that several trees have together. Its methods may be called from several goroutines.
type Pool struct {
	size int64
	left atomic.Int64
}

// NewPool makes a pool of that many bytes.
func NewPool(bytes int64) *Pool {
	p := &Pool{size: bytes}
	p.left.Store(bytes)
	return p
}

// take takes n bytes, 0 or more, or is ErrTooBig. A nil pool has room for everything.
func (p *Pool) take(n int64) error {
	if p == nil || p.left.Add(-n) >= 0 {
		return nil
	}
	return fmt.Errorf("%w: all files together have more than %d bytes", ErrTooBig, p.size)
}

// GiveBack returns what the tree has taken of its limits' Pool, whether there was room for it or not: for a tree that is thrown away and
// made again.
func (t *Tree) GiveBack() {
	if p := t.lim.Pool; p != nil {
		p.left.Add(t.budget.pooled)
	}
	t.budget.pooled = 0
}
