package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ampoule-vm/ampoule/internal/tree"
)

// Unpack fetches the layers and unpacks them, lowest first, to dir, which must not exist
// and whose parent must. Everything is written beside dir, where nobody looks, as it comes; it is renamed to dir only when
// the digest, the HMAC and the diff-ID of every layer hold, and on error nothing stays.
// keys must open every encrypted layer ([Image.KeyIDs]); that is tried before a byte is
// fetched. progress, if not nil, gets the bytes just fetched, from several goroutines.
// Where a mirror may be to blame it all begins anew without that mirror, and so does progress. Errors are [*Error].
func (i *Image) Unpack(ctx context.Context, dir string, keys Keys, lim Limits, progress func(int64)) error {
	for {
		err := i.unpack(ctx, dir, keys, lim, progress)
		// Any error: what is not the image's is parsed and written before its digest is known to be wrong.
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Layer < 0 || ctx.Err() != nil || !i.reg.wrong(i.Layers[e.Layer].Digest, err) {
			return err
		}
	}
}

func (i *Image) unpack(ctx context.Context, dir string, keys Keys, lim Limits, progress func(int64)) (err error) {
	fail := func(layer int, err error) error { return &Error{i.URI, layer, err} }
	if progress == nil {
		progress = func(int64) {}
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fail(-1, fmt.Errorf("unpack to %s: it exists already or cannot be looked at", dir))
	}

	opened := make([]*layerKey, len(i.Layers))
	defer func() {
		for _, k := range opened {
			if k != nil {
				k.zero()
			}
		}
	}()
	for n := range i.Layers {
		if i.Layers[n].Encrypted {
			if opened[n], err = i.Layers[n].enc.unwrap(keys); err != nil {
				return fail(n, err)
			}
		}
	}

	staging, err := os.MkdirTemp(filepath.Dir(dir), ".unpacking-*")
	if err != nil {
		return fail(-1, err)
	}
	defer func() {
		if err != nil {
			if left := os.RemoveAll(staging); left != nil {
				err = errors.Join(err, left)
			}
		}
	}()
	t, err := tree.Open(staging, lim)
	if err != nil {
		return fail(-1, err)
	}
	defer t.Close()
	defer func() {
		if err != nil { // it may begin anew, without a mirror that lied
			t.GiveBack()
		}
	}()

	select {
	case i.mem.turns <- struct{}{}:
		defer func() { <-i.mem.turns }()
	case <-ctx.Done():
		return fail(-1, ctx.Err())
	}
	ctx, cancel := context.WithCancel(ctx)
	layers, slots := i.passages(opened), make(chan struct{}, aheadLayers)
	started := make(chan struct{})
	go func() {
		defer close(started)
		i.start(ctx, layers, slots, func(n int64) {
			t.Compressed(n)
			progress(n)
		})
	}()
	defer func() {
		cancel() // what is still on the wire ends at once
		<-started
		for _, p := range layers {
			p.close()
		}
	}()
	for n, p := range layers {
		if err := p.unpack(t); err != nil {
			return fail(n, err)
		}
		p.close()
		<-slots
	}
	i.PlainHTTP = i.PlainHTTP || i.reg.guard.usedPlain.Load()
	if err := t.Seal(); err != nil {
		return fail(-1, err)
	}
	if err := os.Rename(staging, dir); err != nil {
		return fail(-1, err)
	}
	return nil
}
