package guestapi

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// The bounds of the server. A workload that takes every connection only stops itself from asking.
const (
	maxConns   = 32
	maxHeader  = 16 << 10
	readWithin = 10 * time.Second
	idleFor    = 30 * time.Second
)

// Serve answers on l until ctx ends, and closes it. The error is nil then; requests that are under way are cut off.
func (a *API) Serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{
		Handler:           a,
		ReadHeaderTimeout: readWithin,
		ReadTimeout:       readWithin,
		IdleTimeout:       idleFor,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          log.New(io.Discard, "", 0), // it would quote the workload on the console
		Protocols:         new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	err := s.Serve(&bounded{Listener: l, free: make(chan struct{}, maxConns), closed: make(chan struct{})})
	if errors.Is(err, http.ErrServerClosed) && ctx.Err() != nil {
		return nil
	}
	s.Close()
	return err
}

// bounded accepts no connection before one of too many is closed.
type bounded struct {
	net.Listener
	free   chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.free <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.free
		return nil, err
	}
	return &conn{Conn: c, release: func() { <-b.free }}, nil
}

func (b *bounded) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

type conn struct {
	net.Conn
	once    sync.Once
	release func()
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.release)
	return err
}
