package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver/rego"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver/store"
)

// A compiledPolicy is a policy of the store as it is now: the file is read for every question, and compiled when it has
// changed.
type compiledPolicy[T any] struct {
	store   *store.Store
	name    string
	compile func(src []byte) (T, error)

	mu       sync.Mutex
	src      []byte
	compiled T
}

// current gives the policy. The error wraps fs.ErrNotExist if there is none.
func (p *compiledPolicy[T]) current() (T, error) {
	var none T
	src, err := p.store.Policy(p.name)
	if err != nil {
		return none, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.src != nil && bytes.Equal(p.src, src) {
		return p.compiled, nil
	}
	compiled, err := p.compile(src)
	if err != nil {
		return none, err
	}
	p.src, p.compiled = src, compiled
	return compiled, nil
}

// resourcePolicy is the store's as a kbsserver.ResourcePolicy; load says what is wrong with it now.
func resourcePolicy(s *store.Store) (ask kbsserver.ResourcePolicy, load func() error) {
	p := &compiledPolicy[*rego.Policy]{store: s, name: "resource", compile: rego.Compile}
	ask = func(ctx context.Context, path string, claims map[string]any) (bool, string, error) {
		policy, err := p.current()
		if err != nil {
			return false, "", err
		}
		return policy.Resource(ctx, path, claims)
	}
	return ask, func() error { _, err := p.current(); return err }
}

// attestationPolicy is the store's, with its reference values, as Config.Appraise of a broker.
func attestationPolicy(s *store.Store) (appraise func(context.Context, map[string]any) (map[string]int, error), load func() error) {
	p := &compiledPolicy[*rego.Attestation]{store: s, name: "attestation/" + store.DefaultPolicy, compile: rego.CompileAttestation}
	appraise = func(ctx context.Context, claims map[string]any) (map[string]int, error) {
		policy, err := p.current()
		if err != nil {
			return nil, err
		}
		references, err := s.ReferenceValues()
		if err != nil {
			return nil, fmt.Errorf("attestation policy: %w", err)
		}
		return policy.Appraise(ctx, claims, references)
	}
	return appraise, func() error { _, err := p.current(); return err }
}
