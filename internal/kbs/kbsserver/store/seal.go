package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
)

// maxOverhead bounds what sealing adds: age's header and tags, and the label.
const maxOverhead = 16 << 10

// The label goes before a resource inside its seal, so that a sealed file does not open under another path: whoever can
// write to the disk could otherwise move a well guarded resource to where the policy gives it away.
func label(path string) string { return "ampoule sealed resource v1\n" + path + "\n" }

func seal(b []byte, path string, to age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", path, err)
	}
	if _, err := io.WriteString(w, label(path)); err != nil {
		return nil, fmt.Errorf("seal %s: %w", path, err)
	}
	if _, err := w.Write(b); err != nil {
		return nil, fmt.Errorf("seal %s: %w", path, err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("seal %s: %w", path, err)
	}
	return out.Bytes(), nil
}

func unseal(sealed []byte, path string, id age.Identity) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), id)
	if err != nil {
		return nil, fmt.Errorf("unseal %s: %w", path, err)
	}
	limit := len(label(path)) + MaxResource
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		clear(b)
		return nil, fmt.Errorf("unseal %s: %w", path, err)
	}
	rest, ok := bytes.CutPrefix(b, []byte(label(path)))
	if !ok || len(b) > limit || len(rest) == 0 {
		clear(b)
		return nil, fmt.Errorf("unseal %s: the file was not sealed for this path", path)
	}
	return rest, nil
}

// recipientOf gives what an identity opens.
func recipientOf(id age.Identity) (age.Recipient, error) {
	switch id := id.(type) {
	case *age.X25519Identity:
		return id.Recipient(), nil
	case *age.HybridIdentity:
		return id.Recipient(), nil
	}
	return nil, fmt.Errorf("store: an identity of type %T has no recipient of its own; give one", id)
}

const maxSecretFile = 64 << 10

// Identity reads an age identity file, as age-keygen makes it: of its lines exactly one is an identity. It must be
// readable by its owner alone.
func Identity(file string) (age.Identity, error) {
	b, err := secretFile(file)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(ids) != 1 {
		return nil, fmt.Errorf("%s: %d identities, want one", file, len(ids))
	}
	return ids[0], nil
}

// Passphrase gives the identity that dir/identity.age holds under the passphrase in the first line of a file, and makes
// both the identity and the file in dir at first. Deriving takes about a second and happens only here. Whoever has
// dir/identity.age can try passphrases: choose one of at least 12 bytes that was not chosen by a person.
func Passphrase(dir, file string) (age.Identity, error) { return passphrase(dir, file, 18) }

func passphrase(dir, file string, work int) (age.Identity, error) {
	b, err := secretFile(file)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	line, _, _ := strings.Cut(string(b), "\n")
	line = strings.TrimSuffix(line, "\r")
	if len(line) < 12 {
		return nil, fmt.Errorf("%s: the passphrase has %d bytes, want at least 12", file, len(line))
	}
	kept := filepath.Join(dir, "identity.age")
	sealed, err := boundedFile(kept)
	if errors.Is(err, os.ErrNotExist) {
		return newIdentity(dir, line, work)
	}
	if err != nil {
		return nil, err
	}
	id, err := age.NewScryptIdentity(line)
	if err != nil {
		return nil, err
	}
	id.SetMaxWorkFactor(20)
	r, err := age.Decrypt(bytes.NewReader(sealed), id)
	if err != nil {
		return nil, fmt.Errorf("%s does not open %s: %w", file, kept, err)
	}
	ids, err := age.ParseIdentities(io.LimitReader(r, maxSecretFile))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kept, err)
	}
	if len(ids) != 1 {
		return nil, fmt.Errorf("%s: %d identities, want one", kept, len(ids))
	}
	return ids[0], nil
}

func newIdentity(dir, pass string, work int) (age.Identity, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	to, err := age.NewScryptRecipient(pass)
	if err != nil {
		return nil, err
	}
	to.SetWorkFactor(work)
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(w, id.String()+"\n"); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	// A store of its own, for its lock and its way to write: nothing may be sealed to an identity that is lost.
	s, err := Open(dir, Options{})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if _, err := s.root.Lstat("identity.age"); err == nil {
		return nil, fmt.Errorf("%s: another broker made an identity at the same time; start again", dir)
	}
	return id, s.write("identity.age", out.Bytes())
}

// secretFile reads a small file that must be its owner's alone.
func secretFile(file string) ([]byte, error) {
	i, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if i.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %o lets others read it; chmod 600", file, i.Mode().Perm())
	}
	return boundedFile(file)
}

func boundedFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(b) > maxSecretFile {
		err = fmt.Errorf("%s: more than %d bytes", file, maxSecretFile)
	}
	return b, err
}
