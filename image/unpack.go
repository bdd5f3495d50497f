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

// fetchAhead is how many layers may be on the wire or spooled at once, the one being
// unpacked included: it bounds the memory that ciphertext takes in a tmpfs.
const fetchAhead = 3

// Unpack fetches the layers and unpacks them, lowest first, to dir, which must not exist
// and whose parent must. Everything is written beside dir and renamed to it only when
// the digest, the HMAC and the diff-ID of every layer hold; on error nothing stays.
// keys must open every encrypted layer ([Image.KeyIDs]); that is tried before a byte is
// fetched. progress, if not nil, gets the bytes just fetched, from several goroutines.
// Errors are [*Error].
func (i *Image) Unpack(ctx context.Context, dir string, keys Keys, lim Limits, progress func(int64)) (err error) {
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

	parent := filepath.Dir(dir)
	staging, err := os.MkdirTemp(parent, ".unpacking-*")
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

	ctx, cancel := context.WithCancel(ctx)
	f := i.fetchAll(ctx, parent, opened, progress)
	defer f.drain()
	defer cancel() // runs before drain: what is still on the wire ends at once
	for n := range i.Layers {
		blob, err := f.next()
		if err != nil {
			return fail(n, err)
		}
		err = i.Layers[n].unpack(ctx, t, blob, opened[n])
		f.done(blob)
		if err != nil {
			return fail(n, err)
		}
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

// unpack applies one verified blob to the tree and checks what only its end can show.
func (l *Layer) unpack(ctx context.Context, t *tree.Tree, blob *os.File, k *layerKey) error {
	r, err := l.open(ctx, blob, k, t)
	if err != nil {
		return err
	}
	defer r.close()
	if err := t.Tar(r); err != nil {
		// Bytes that are not what the image says explain any complaint of the parsers
		// above them, and are the graver news.
		if errors.Is(err, ErrFormat) {
			if sum := r.verify(); errors.Is(sum, ErrDigest) || errors.Is(sum, ErrDiffID) {
				return errors.Join(sum, err)
			}
		}
		return err
	}
	return r.verify()
}
