package verify

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// pythonWith finds an interpreter that has the library.
func pythonWith(t *testing.T) string {
	t.Helper()
	var last []byte
	for _, name := range []string{"/usr/bin/python3", "python3"} {
		out, err := exec.Command(name, "-c", "import cryptography; assert int(cryptography.__version__.split('.')[0]) >= 38").CombinedOutput()
		if err == nil {
			return name
		}
		last = append(last, out...)
	}
	t.Skipf("no python3 with cryptography 38 or later (Debian: python3-cryptography): %s", last)
	return ""
}

// TestPythonVerifier: a verifier that shares no code with this one, written by docs/RECEIPTS.md, says the same of every vector.
func TestPythonVerifier(t *testing.T) {
	python := pythonWith(t)
	verify := func(kind evidence.Kind, args ...string) (out []byte, code int) {
		t.Helper()
		cmd := exec.Command(python, append([]string{"../../docs/receipts/verify.py", "--root", filepath.Join(vectors, string(kind), "root.pem")}, args...)...)
		cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		err := cmd.Run()
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			return said.Bytes(), e.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		return said.Bytes(), 0
	}
	run := func(kind evidence.Kind, receipt string, more ...string) (out []byte, code int) {
		t.Helper()
		return verify(kind, append(more, filepath.Join(vectors, string(kind), receipt))...)
	}
	for _, kind := range kinds {
		at := func(name string) string { return filepath.Join(vectors, string(kind), name) }
		for _, form := range []string{"result.tar.zst.age", "result.tar"} {
			out, code := run(kind, "receipt.json", "--measurements", at("measurements.json"), "--manifest", at("manifest.json"), "--result", at(form))
			if code != 0 || !bytes.Equal(out, vector(t, kind, "facts.json")) {
				t.Errorf("%s, %s: exit %d: %s", kind, form, code, out)
			}
		}
		refused := []string{"receipt-bare.json"}
		for name := range refusals(kind) {
			refused = append(refused, "refused/"+name+".json")
		}
		for _, name := range refused {
			if out, code := run(kind, name); code != 3 || !bytes.HasPrefix(out, []byte("refused: ")) {
				t.Errorf("%s of %s: exit %d: %s", name, kind, code, out)
			}
		}
		for flag, file := range map[string]string{"--manifest": "facts.json", "--result": "root.pem"} {
			if out, code := run(kind, "receipt.json", flag, at(file)); code != 3 {
				t.Errorf("%s with another %s: exit %d: %s", kind, flag, code, out)
			}
		}
		other := kinds[0]
		if other == kind {
			other = kinds[1]
		}
		if out, code := run(kind, "../"+string(other)+"/receipt.json"); code != 3 {
			t.Errorf("under another root: exit %d: %s", code, out)
		}

		// Every seventh of what TestAlteredReceipts tries.
		var altered []string
		n, dir := 0, t.TempDir()
		alterations(t, vector(t, kind, "receipt.json"), func(_ string, b []byte) {
			if n++; n%7 != 1 {
				return
			}
			altered = append(altered, filepath.Join(dir, fmt.Sprint(n)))
			if err := os.WriteFile(altered[len(altered)-1], b, 0o600); err != nil {
				t.Fatal(err)
			}
		})
		out, code := verify(kind, altered...)
		if got := bytes.Count(out, []byte("refused: ")); code != 3 || got != len(altered) || got < 100 {
			t.Errorf("%s: of %d altered receipts %d are refused, exit %d:\n%s", kind, len(altered), got, code, out)
		}
	}
}
