package workload

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	passwdSample = "root:x:0:0::/root:/bin/sh\ntoor:x:0:5::/:\nbroken\napp:x:1000:1001::/:\nwrong:x:-1:2::/:\n2000:x:3000:3001::/:\nstaff:x:50:0::/:\nhalf:x:60:y::/:\napp:x:0:0::/:\n"
	groupSample  = ":x:9:\nroot:x:0:\ndata:x:77:app\nbroken:x\n"
)

func imageWith(t testing.TB, passwd, group string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestLookupUser(t *testing.T) {
	root, bare := imageWith(t, passwdSample, groupSample), t.TempDir()
	for _, tc := range []struct {
		root, user string
		uid, gid   int
	}{
		{root, "", nobody, nobody},
		{root, "root", nobody, nobody},
		{root, "0", nobody, nobody},
		{root, "00", nobody, nobody},
		{root, "0:77", nobody, nobody},
		{root, "root:data", nobody, nobody},
		{root, "toor", nobody, nobody},
		{root, "app", 1000, 1001}, // the first line of a name counts
		{root, "1000", 1000, 1001},
		{root, "app:data", 1000, 77},
		{root, "app:5", 1000, 5},
		{root, "app:root", 1000, nobody},
		{root, "app:0", 1000, nobody},
		{root, "staff", 50, nobody},
		{root, "2000", 2000, nobody}, // digits are a number, whatever names there are
		{root, "12345", 12345, nobody},
		{bare, "1000", 1000, nobody},
		{bare, "1000:1000", 1000, 1000},
		{bare, "0", nobody, nobody},
	} {
		uid, gid, err := LookupUser(tc.root, tc.user)
		if err != nil || uid != tc.uid || gid != tc.gid {
			t.Errorf("%q: %d, %d, %v, want %d, %d", tc.user, uid, gid, err, tc.uid, tc.gid)
		}
	}
	for _, tc := range []struct{ root, user, want string }{
		{root, "nosuch", `user "nosuch": not in the image's /etc/passwd; give the number`},
		{root, "app:nosuch", `group "nosuch": not in the image's /etc/group`},
		{root, "app:", `group ""`},
		{root, ":data", `user ""`},
		{root, "wrong", "not in the image"},
		{root, "half", `id "y" is not a number`},
		{root, "-1", "not in the image"},
		{root, "4294967296", "not in the image"},
		{bare, "app", "give the number"},
		{bare + "/none", "1", "no such file"},
	} {
		if uid, gid, err := LookupUser(tc.root, tc.user); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %d, %d, %v, want an error with %q", tc.user, uid, gid, err, tc.want)
		}
	}
}

func TestLookupUserStaysInTheImage(t *testing.T) {
	root, outside := t.TempDir(), imageWith(t, "app:x:1:1::/:\n", "")
	if err := os.Symlink(filepath.Join(outside, "etc"), filepath.Join(root, "etc")); err != nil {
		t.Fatal(err)
	}
	if uid, _, err := LookupUser(root, "app"); err == nil {
		t.Errorf("user %d was read from outside of the image", uid)
	}
}

func TestLookupUserIsBounded(t *testing.T) {
	root := imageWith(t, strings.Repeat("#", maxPasswd)+"\napp:x:1:1::/:\n", "")
	if _, _, err := LookupUser(root, "app"); err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("error %v", err)
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add("app:data", passwdSample, groupSample)
	f.Add("1000", "x:x:1000:0", "")
	f.Add("a:b", "a:::", "b:::")
	f.Add("a", "a:x:18446744073709551616:0\na:x:2147483648:1\r\n", "")
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		uid, gid, err := LookupUser(imageWith(t, passwd, group), user)
		if err == nil && (uid <= 0 || gid <= 0) {
			t.Errorf("%q: %d, %d", user, uid, gid)
		}
	})
}
