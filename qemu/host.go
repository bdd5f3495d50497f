package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/psp"
)

// drainTime bounds how long the server may take for what a VM sent before its end.
const drainTime = 5 * time.Second

// A host is our side of one VM: what listens behind its vsock.
type host struct {
	cfg         *Config
	vsock       vsock
	server      *server
	measurement evidence.Measurement
	stop        context.CancelFunc // of the simulated processor
	wg          sync.WaitGroup
	mu          sync.Mutex
	errs        []error // of wg's goroutines
}

func newHost(ctx context.Context, cfg *Config) (h *host, err error) {
	h = &host{cfg: cfg, stop: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	ports := []uint32{cmdline.DefaultPort}
	if cfg.Simulated {
		ports = append(ports, psp.Port)
	}
	if h.vsock, err = openVsock(ports); err != nil {
		return h, err
	}
	if h.server, err = newServer(cfg); err != nil {
		return h, err
	}
	h.serve(func() error { return h.server.serve(h.vsock.listener(cmdline.DefaultPort)) })
	if !cfg.Simulated {
		return h, nil
	}
	p, launch, err := cfg.pspLaunch()
	if err != nil {
		return h, err
	}
	h.measurement = launch.Measurement
	ctx, h.stop = context.WithCancel(ctx)
	h.serve(func() error { return p.Serve(ctx, h.vsock.listener(psp.Port), launch) })
	return h, nil
}

// makeSwap makes the disk that the guest swaps to: a file that takes up what is written to it.
func (h *host) makeSwap() error {
	if h.cfg.SwapMiB == 0 {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(h.cfg.Dir, SwapFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("disk for swap: %w", err)
	}
	return errors.Join(f.Truncate(int64(h.cfg.SwapMiB)<<20), f.Close())
}

func (h *host) serve(f func() error) {
	h.wg.Go(func() {
		if err := f(); err != nil {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.errs = append(h.errs, err)
		}
	})
}

// close lets the server take what the VM has sent, then ends everything.
func (h *host) close() error {
	h.stop()
	var err error
	if h.server != nil {
		err = h.server.close()
	}
	if h.vsock != nil {
		err = errors.Join(err, h.vsock.close())
	}
	h.wg.Wait()
	return errors.Join(append(h.errs, err)...)
}

// A tempDir is a directory of our own for the vhost socket: nobody else may connect to it.
type tempDir string

func newTempDir() (tempDir, error) {
	dir, err := os.MkdirTemp("", "ampoule-")
	if err != nil {
		return "", fmt.Errorf("directory for the vhost socket: %w", err)
	}
	return tempDir(dir), nil
}

func (d tempDir) file(name string) string { return filepath.Join(string(d), name) }
func (d tempDir) remove() error           { return os.RemoveAll(string(d)) }
