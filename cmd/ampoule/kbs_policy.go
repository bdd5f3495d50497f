package main

import (
	"bytes"
	"context"
	"sync"

	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver/rego"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver/store"
)

// A regoPolicy is the store's resource policy as it is now: the file is read for every question, and compiled when it
// has changed.
type regoPolicy struct {
	store *store.Store

	mu       sync.Mutex
	src      []byte
	compiled *rego.Policy
}

// load brings compiled up to date. The error wraps fs.ErrNotExist if there is no policy.
func (p *regoPolicy) load() error {
	_, err := p.current()
	return err
}

func (p *regoPolicy) current() (*rego.Policy, error) {
	src, err := p.store.Policy("resource")
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.compiled != nil && bytes.Equal(p.src, src) {
		return p.compiled, nil
	}
	compiled, err := rego.Compile(src)
	if err != nil {
		return nil, err
	}
	p.src, p.compiled = src, compiled
	return compiled, nil
}

// ask is a kbsserver.ResourcePolicy.
func (p *regoPolicy) ask(ctx context.Context, path string, claims map[string]any) (allow bool, why string, err error) {
	policy, err := p.current()
	if err != nil {
		return false, "", err
	}
	return policy.Resource(ctx, path, claims)
}
