package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestApply(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"there", "also"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("0"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/dev/null", filepath.Join(dir, "deaf")); err != nil {
		t.Fatal(err)
	}
	errs := apply(dir, []setting{
		{"there", "1", false},
		{"absent/by/right", "1", true},
		{"absent/by/fault", "1", false},
		{"deaf", "1", true}, // takes the write and says something else
		{"also", "2", true},
	})
	if len(errs) != 2 || !errors.Is(errs[0], os.ErrNotExist) || !strings.Contains(errs[0].Error(), "absent/by/fault") ||
		!strings.Contains(errs[1].Error(), `deaf is "" after "1" was written`) {
		t.Errorf("errors %v", errs)
	}
	for name, want := range map[string]string{"there": "1", "also": "2"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != want {
			t.Errorf("%s is %q, want %q (%v)", name, b, want, err)
		}
	}
}

func TestSettingsThatNoKernelMayLack(t *testing.T) {
	var got []string
	for _, s := range settings {
		if !s.mayBeAbsent {
			got = append(got, s.path+"="+s.value)
		}
		if strings.Contains(s.path, "..") || filepath.IsAbs(s.path) {
			t.Errorf("path %q", s.path)
		}
	}
	want := []string{"kernel/kptr_restrict=2", "kernel/dmesg_restrict=1", "kernel/randomize_va_space=2", "user/max_user_namespaces=1", "kernel/yama/ptrace_scope=3", "fs/suid_dumpable=0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mandatory settings (-want +got):\n%s", diff)
	}
}

func TestLockLSM(t *testing.T) {
	for _, tc := range []struct{ name, before, after, err string }{
		{"raised from none", "[none] integrity confidentiality\n", "confidentiality", ""},
		{"raised from integrity", "none [integrity] confidentiality\n", "confidentiality", ""},
		{"there already", "none integrity [confidentiality]\n", "none integrity [confidentiality]\n", ""},
		{"not offered", "[none] integrity\n", "[none] integrity\n", "want confidentiality"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "lockdown")
			if err := os.WriteFile(path, []byte(tc.before), 0o644); err != nil {
				t.Fatal(err)
			}
			err := lockLSM(path)
			if (tc.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			// A real kernel replaces the whole line; of a plain file the first bytes.
			b, _ := os.ReadFile(path)
			if !strings.HasPrefix(string(b), tc.after) {
				t.Errorf("file is %q, want %q", b, tc.after)
			}
		})
	}
	if err := lockLSM(filepath.Join(t.TempDir(), "lockdown")); err != nil {
		t.Errorf("a kernel without the LSM: %v", err)
	}
}
