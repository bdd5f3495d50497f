package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
)

func open(t testing.TB, dir string, id age.Identity) *Store {
	t.Helper()
	s, err := Open(dir, Options{Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newX25519(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

const key = "default/key/algo-key"

func TestResources(t *testing.T) {
	for name, id := range map[string]age.Identity{"clear": nil, "sealed": newX25519(t)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, id)
			if _, err := s.Get(key); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("before: %v", err)
			}
			if err := s.Delete(key); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("delete before: %v", err)
			}
			for _, want := range [][]byte{{7}, bytes.Repeat([]byte("secret"), 1000), make([]byte, MaxResource)} {
				if err := s.Put(key, want); err != nil {
					t.Fatal(err)
				}
				got, err := s.Get(key)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes, want %d: %v", len(got), len(want), err)
				}
			}
			for _, bad := range [][]byte{nil, make([]byte, MaxResource+1)} {
				if err := s.Put(key, bad); err == nil {
					t.Errorf("%d bytes were taken", len(bad))
				}
			}
			if err := s.Delete(key); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(key); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("after: %v", err)
			}
			for _, f := range files(t, dir) {
				if f != ".lock" {
					t.Errorf("left: %s", f)
				}
			}
		})
	}
}

func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(dir, p)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestPaths(t *testing.T) {
	s := open(t, t.TempDir(), nil)
	for _, p := range []string{"", "a", "a/b", "a/b/c/d", "/a/b/c", "a/b/c/", "a//c", "../../x", "a/../b", "a/b/..", ".a/b/c",
		"a/b/.new-x", "a/b/c\n", "a/b/ü", "a/b/c%2f", "a\x00/b/c", `a\b/c/d`, "a/b/" + strings.Repeat("c", 600)} {
		if _, err := s.Get(p); !errors.Is(err, ErrPath) {
			t.Errorf("get %q: %v", p, err)
		}
		if err := s.Put(p, []byte{1}); !errors.Is(err, ErrPath) {
			t.Errorf("put %q: %v", p, err)
		}
		if err := s.Delete(p); !errors.Is(err, ErrPath) {
			t.Errorf("delete %q: %v", p, err)
		}
	}
	for _, p := range []string{"a/b/c", "A-1_/b..c/9.x.", "-/_/a"} {
		if err := s.Put(p, []byte{1}); err != nil {
			t.Error(err)
		}
	}
}

// The layout of before, with keys that somebody copied in, stays readable; links lead nowhere else.
func TestByHand(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	at := func(name string) string { return filepath.Join(dir, "keys/default/key", name) }
	if err := errors.Join(os.MkdirAll(at("folder"), 0o700), os.WriteFile(at("good"), []byte("k"), 0o644),
		os.WriteFile(at("empty"), nil, 0o600), os.WriteFile(at("big"), make([]byte, MaxResource+1), 0o600),
		os.WriteFile(filepath.Join(dir, "outside"), []byte("x"), 0o600), os.Symlink("good", at("inside")),
		os.Symlink("/etc/hostname", at("abs")), os.Symlink("../../../../x", at("up")), syscall.Mkfifo(at("fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"good", "inside"} {
		if b, err := s.Get("default/key/" + name); err != nil || string(b) != "k" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for _, name := range []string{"folder", "empty", "big", "abs", "up", "fifo"} {
		if b, err := s.Get("default/key/" + name); err == nil {
			t.Errorf("%s: %d bytes", name, len(b))
		}
	}
	if err := s.Put("default/key/folder", []byte("k")); err == nil {
		t.Error("a folder was replaced")
	}
	if _, err := s.Get("default/key/good"); err != nil {
		t.Error(err)
	}
}

func TestSealed(t *testing.T) {
	dir, id := t.TempDir(), newX25519(t)
	s := open(t, dir, nil)
	secret := []byte("the secret of the algorithm")
	if err := s.Put(key, secret); err != nil {
		t.Fatal(err)
	}
	s.Close()

	// With an identity: what was in clear is read, and gone once it is written again.
	s = open(t, dir, id)
	if b, err := s.Get(key); err != nil || !bytes.Equal(b, secret) {
		t.Fatalf("%q, %v", b, err)
	}
	if err := s.Put(key, secret); err != nil {
		t.Fatal(err)
	}
	for _, f := range files(t, dir) {
		b, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil || bytes.Contains(b, secret) {
			t.Errorf("%s holds the secret (%v)", f, err)
		}
	}

	// A sealed file is good for its own path and in its whole length.
	file := filepath.Join(dir, "sealed", key)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sealed/default/key/other"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Get("default/key/other"); err == nil {
		t.Errorf("moved file opens: %q", b)
	}
	for _, broken := range [][]byte{nil, raw[:len(raw)-1], append(bytes.Clone(raw), 0), append(bytes.Clone(raw[:len(raw)-1]), raw[len(raw)-1]^1)} {
		if err := os.WriteFile(file, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Get(key); err == nil {
			t.Errorf("broken file opens: %q", b)
		}
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Close()

	// Without the identity, or with another: nothing opens, and nothing is put in its place.
	s = open(t, dir, nil)
	_, err = s.Get(key)
	for what, err := range map[string]error{"get": err, "put": s.Put(key, secret), "delete": s.Delete(key)} {
		if !errors.Is(err, ErrSealed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	s.Close()
	s = open(t, dir, newX25519(t))
	if b, err := s.Get(key); err == nil {
		t.Errorf("another identity opens %q", b)
	}
}

func TestOneStorePerDirectory(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "another broker") {
		t.Fatalf("second store: %v", err)
	}
	s.Close()
	open(t, dir, nil)
}

func TestIdentityFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return f
	}
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	x := newX25519(t).String()
	for name, text := range map[string]string{"x25519": "# made today\n" + x + "\n", "hybrid": pq.String() + "\n"} {
		id, err := Identity(file(name, text, 0o600))
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, t.TempDir(), id)
		if err := s.Put(key, []byte("v")); err != nil {
			t.Error(err)
		}
		if b, err := s.Get(key); err != nil || string(b) != "v" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for name, f := range map[string]string{"others": file("others", x, 0o640), "two": file("two", x+"\n"+x, 0o600),
		"none": file("none", "", 0o600), "garbage": file("garbage", "hunter2", 0o600), "absent": filepath.Join(dir, "absent")} {
		if _, err := Identity(f); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestPassphrase(t *testing.T) {
	dir, secrets := t.TempDir(), t.TempDir()
	pass := func(text string) string {
		f := filepath.Join(secrets, "pass")
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	id, err := passphrase(dir, pass("correct horse battery\nsecond line"), 10)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, id)
	if err := s.Put(key, []byte("v")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if id, err = passphrase(dir, pass("correct horse battery\r\n"), 10); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, id)
	if b, err := s.Get(key); err != nil || string(b) != "v" {
		t.Fatalf("%q, %v", b, err)
	}
	for _, wrong := range []string{"correct horse batterx", "short", ""} {
		if _, err := passphrase(dir, pass(wrong), 10); err == nil {
			t.Errorf("%q opens", wrong)
		}
	}
}

func TestPolicies(t *testing.T) {
	s := open(t, t.TempDir(), nil)
	for _, name := range []string{"resource", "attestation/default_cpu", "attestation/a.b"} {
		if _, err := s.Policy(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s before: %v", name, err)
		}
		if err := s.SetPolicy(name, []byte("package "+name)); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Policy(name); err != nil || string(b) != "package "+name {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	names, err := s.Policies()
	if d := cmp.Diff([]string{"attestation/a.b", "attestation/default_cpu", "resource"}, names); d != "" || err != nil {
		t.Error(err, d)
	}
	for _, name := range []string{"", "x", "../x", "attestation/", "attestation/../x", "attestation/.x", "attestation/a/b"} {
		if err := s.SetPolicy(name, nil); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	if s.SetPolicy("resource", make([]byte, MaxPolicy+1)) == nil || s.SetPolicy("resource", []byte{0xff}) == nil {
		t.Error("a policy without bounds")
	}
}

func TestReferenceValues(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	if v, err := s.ReferenceValues(); err != nil || v == nil || len(v) != 0 {
		t.Fatalf("before: %v, %v", v, err)
	}
	if err := s.SetReferenceValues(map[string]json.RawMessage{"a": json.RawMessage(`["x"]`), "b": json.RawMessage(`1`)}); err != nil {
		t.Fatal(err)
	}
	if err := s.AddReferenceValues(map[string]json.RawMessage{"b": json.RawMessage(`2`), "c": json.RawMessage(`{}`)}); err != nil {
		t.Fatal(err)
	}
	got, err := s.ReferenceValues()
	want := map[string]json.RawMessage{"a": json.RawMessage(`["x"]`), "b": json.RawMessage(`2`), "c": json.RawMessage(`{}`)}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Fatal(err, d)
	}
	for name, values := range map[string]map[string]json.RawMessage{"no name": {"": json.RawMessage(`1`)}, "not JSON": {"a": json.RawMessage(`{`)},
		"too much": {"a": json.RawMessage(`"` + strings.Repeat("x", MaxReferenceValues) + `"`)}} {
		if err := s.AddReferenceValues(values); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, referenceFile), []byte(`{"a":1,"a":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err := s.ReferenceValues(); err == nil {
		t.Errorf("a name twice: %v", v)
	}
}
