package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/object"
)

// TestEncryptedFilesOpen in the code of PID 1, from a web server.
func TestEncryptedFilesOpen(t *testing.T) {
	dir := t.TempDir()
	plain := bytes.Repeat([]byte("1,2,3\n"), 500_000)
	in, keyAt := filepath.Join(dir, "in"), filepath.Join(dir, "keys/a/b/c")
	if err := os.WriteFile(in, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(http.FileServer(http.Dir(dir)))
	defer s.Close()
	for _, format := range []string{formatChunked, formatCocos} {
		facts, err := encryptFile(in, filepath.Join(dir, format), format, "a/b/c", keyAt)
		if err != nil {
			t.Fatal(err)
		}
		key, err := os.ReadFile(keyAt)
		if err != nil {
			t.Fatal(err)
		}
		o, err := object.Resolve(t.Context(), object.Source{URI: s.URL + "/" + format}, object.Options{Transport: s.Client().Transport})
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(dir, "out-"+format)
		if err := o.Unpack(t.Context(), out, object.Want{Key: key, Name: "x"}, object.Limits{}, nil); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(out, "x")); err != nil || !bytes.Equal(b, plain) {
			t.Errorf("%s: %d bytes, %v", format, len(b), err)
		}
		if o.Content != "sha256:"+facts.SHA256 || o.Digest != "sha256:"+facts.Sealed {
			t.Errorf("%s: told %+v, and it is %s in %s", format, facts, o.Content, o.Digest)
		}
	}
}
