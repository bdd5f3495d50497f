// Package store keeps what a development key broker has: resources, policies and reference values, on disk.
//
// Every write is atomic and durable: after a crash or a kill a reader finds the whole old or the whole new value, and
// what was acknowledged is there. Resources can be sealed at rest with age. A Store is the only one of its directory.
//
//	keys/REPO/TYPE/TAG          resources in clear, the bytes themselves; may be put there by hand
//	sealed/REPO/TYPE/TAG        resources sealed with age; they go before those in clear
//	identity.age                the key of sealed/, where a passphrase guards it
//	policies/resource.rego      Rego for resources
//	policies/attestation/ID.rego
//	reference-values.json       name to value
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"sync"
	"syscall"

	"filippo.io/age"
)

// Bounds, in bytes. Section numbers in this package refer to wire/SPEC.md.
const (
	MaxResource        = 64 << 10
	MaxPolicy          = 1 << 20
	MaxReferenceValues = 4 << 20
	maxPath            = 512 // of a resource
)

// ErrSealed is wrapped by Get, Put and Delete for a resource that is sealed, in a Store without an identity.
var ErrSealed = errors.New("sealed, and the broker was started without its identity")

// ErrPath is wrapped by an error about a path that no resource can have.
var ErrPath = errors.New("want REPO/TYPE/TAG, each of letters, digits, _, - and, not first, dots")

// Options of a Store. Without an Identity resources are written in clear.
type Options struct {
	Identity age.Identity // opens sealed resources
	// Recipient is what Put seals to; nil with an Identity from this package or of age's X25519 or hybrid kind: its own.
	Recipient age.Recipient
}

// A Store may be used by many goroutines at once. It holds a lock on its directory until Close.
type Store struct {
	root *os.Root
	lock *os.File
	Options
	mu sync.Mutex // held by whatever writes
}

// Open makes the directory if it is not there, and finishes what a kill interrupted. It fails if another Store, of this
// process or another one, has the directory.
func Open(dir string, o Options) (*Store, error) {
	if o.Identity != nil && o.Recipient == nil {
		r, err := recipientOf(o.Identity)
		if err != nil {
			return nil, err
		}
		o.Recipient = r
	}
	if o.Identity == nil && o.Recipient != nil {
		return nil, errors.New("store: a recipient without an identity could never open what it seals")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{root: root, Options: o}
	if err := s.start(); err != nil {
		s.Close()
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) start() error {
	if err := s.root.MkdirAll("keys", 0o700); err != nil {
		return err
	}
	lock, err := s.root.OpenFile(".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return errors.New("another broker is using it; stop that one, or give this one a directory of its own")
		}
		return fmt.Errorf("lock: %w", err)
	}
	return s.sweep()
}

// Close gives the directory free.
func (s *Store) Close() error {
	var err error
	if s.lock != nil {
		err = s.lock.Close()
	}
	return errors.Join(err, s.root.Close())
}

// §1.10: three segments, none of which begins with a dot. A temporary file's name does, so it can never be asked for.
var (
	segment      = `[A-Za-z0-9_-][A-Za-z0-9_.-]*`
	resourcePath = regexp.MustCompile(`\A` + segment + `/` + segment + `/` + segment + `\z`)
	policyName   = regexp.MustCompile(`\A(?:resource|attestation/` + segment + `)\z`)
)

// CheckPath holds a resource's path against §1.10. The error wraps ErrPath.
func CheckPath(p string) error {
	if len(p) > maxPath || !resourcePath.MatchString(p) {
		return fmt.Errorf("resource %.80q: %w", p, ErrPath)
	}
	return nil
}

// Get gives the bytes of a resource, at least one and at most MaxResource. The error wraps fs.ErrNotExist if there is
// none, ErrPath, or ErrSealed. The caller may clear the bytes after use.
func (s *Store) Get(p string) ([]byte, error) {
	if err := CheckPath(p); err != nil {
		return nil, err
	}
	sealed, err := s.read(path.Join("sealed", p), MaxResource+maxOverhead)
	switch {
	case err == nil && s.Identity == nil:
		return nil, fmt.Errorf("resource %s: %w", p, ErrSealed)
	case err == nil:
		return unseal(sealed, p, s.Identity)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	b, err := s.read(path.Join("keys", p), MaxResource)
	if err == nil && len(b) == 0 {
		err = fmt.Errorf("resource %s: empty", p)
	}
	return b, err
}

// Put writes a resource, replacing the one that was there. It returns when the disk has it.
func (s *Store) Put(p string, b []byte) error {
	if err := CheckPath(p); err != nil {
		return err
	}
	if len(b) == 0 || len(b) > MaxResource {
		return fmt.Errorf("resource %s: %d bytes, want 1 to %d", p, len(b), MaxResource)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Recipient == nil {
		if err := s.unsealed(p); err != nil {
			return err
		}
		return s.write(path.Join("keys", p), b)
	}
	sealed, err := seal(b, p, s.Recipient)
	if err != nil {
		return err
	}
	if err := s.write(path.Join("sealed", p), sealed); err != nil {
		return err
	}
	if err := s.remove(path.Join("keys", p)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Delete removes a resource. The error wraps fs.ErrNotExist if there is none.
func (s *Store) Delete(p string) error {
	if err := CheckPath(p); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Identity == nil {
		if err := s.unsealed(p); err != nil {
			return err
		}
	}
	// The one in clear first: it is the older one, and must not come back if a kill falls between the two.
	inClear := s.remove(path.Join("keys", p))
	if inClear != nil && !errors.Is(inClear, fs.ErrNotExist) {
		return inClear
	}
	if err := s.remove(path.Join("sealed", p)); err == nil || inClear != nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unsealed refuses to write beside a sealed resource, which would go before it.
func (s *Store) unsealed(p string) error {
	if _, err := s.root.Lstat(path.Join("sealed", p)); err == nil {
		return fmt.Errorf("resource %s: %w", p, ErrSealed)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
