package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// A server is one that has the manifest and hears of the run: a cvms.Agent is the guest's end. It is the host's, hears what the host
// hears, and its loss ends no run that has its manifest.
type server interface {
	Manifest(context.Context) ([]byte, error)
	Send(result.Event)
	Close(context.Context) error // sends what is queued
}

// openServer begins to speak with the server at addr, which may stop the run. nil: this image cannot (cocos.go).
var openServer func(addr string, stop func()) server

// errStopped ends a boot as its deadline does.
var errStopped = fmt.Errorf("the computation server stopped the run: %w", context.Canceled)

// fetch gets the manifest from the source of the command line.
func (r *run) fetch(ctx context.Context) ([]byte, error) {
	s := r.opts.Manifest
	if s.Kind != cmdline.CVMS {
		return r.fetchManifest(ctx, s)
	}
	if r.openServer == nil {
		return nil, fmt.Errorf("manifest source %s: this image was built without --with cocos", s)
	}
	srv := r.openServer(s.Arg, func() { r.stop(errStopped) })
	r.mu.Lock()
	r.server = srv
	r.mu.Unlock()
	return srv.Manifest(ctx)
}

// hangUp tells the server the rest, where there is one.
func (r *run) hangUp() {
	if r.server == nil {
		return
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), reportLimit, errors.New("the server does not listen"))
	defer cancel()
	r.server.Close(ctx) // what it does not take is its loss
}
