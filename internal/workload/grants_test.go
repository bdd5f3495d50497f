package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/guestapi"
	"github.com/google/go-cmp/cmp"
)

// The guest API as a workload meets it: inside of its network, served from outside.
func TestTheProgramFetchesAResource(t *testing.T) {
	const base = "http://127.0.0.1:8006"
	urls := []string{base + "/cdh/resource/default/key/a", base + "/cdh/resource/default/key/b", base + "/aa/token?token_type=kbs", base + "/info"}
	s, stdout, stderr := sandbox(t, append([]string{"fetch"}, urls...)...)
	api := &guestapi.API{
		Resources: []string{"default/key/a"},
		Resource:  func(_ context.Context, path string) ([]byte, error) { return []byte("bytes of " + path), nil },
	}
	var addr, ended string
	s.Services = []Service{{"127.0.0.1:8006", func(l net.Listener) {
		addr = l.Addr().String()
		ended = fmt.Sprint(api.Serve(t.Context(), l))
	}}}
	mustRun(t, s, Outcome{})
	var got map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout, stderr)
	}
	want := map[string]string{
		urls[0]: "200 bytes of default/key/a <nil>",
		urls[1]: "500 resource is not granted by the manifest <nil>",
		urls[2]: "404 Attestation Feature Not Enabled <nil>",
		urls[3]: `200 {"version":"0.1.0","feature":"resource"} <nil>`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if addr != "127.0.0.1:8006" || !strings.Contains(ended, net.ErrClosed.Error()) {
		t.Errorf("served at %s until %s", addr, ended)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("the address is served outside of the sandbox")
	}
}

func TestNothingListensUngranted(t *testing.T) {
	const url = "http://127.0.0.1:8006/info"
	s, stdout, _ := sandbox(t, "fetch", url)
	mustRun(t, s, Outcome{})
	if !bytes.Contains(stdout.Bytes(), []byte("connection refused")) {
		t.Errorf("%s", stdout)
	}
}

// The listener is the machine's: the program has no descriptor of it.
func TestTheProgramHasNoListener(t *testing.T) {
	nobody := func(l net.Listener) {
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}
	for _, listen := range [][]Service{{{"127.0.0.1:8006", nobody}}, {{"[::1]:80", nobody}, {"127.69.0.1:443", nobody}}} {
		s, stdout, _ := sandbox(t, "facts")
		s.Services = listen
		mustRun(t, s, Outcome{})
		var f facts
		if err := json.Unmarshal(stdout.Bytes(), &f); err != nil {
			t.Fatal(err)
		}
		for i, d := range f.Descriptors {
			if strings.HasSuffix(d, "/dev/null") {
				f.Descriptors[i] = "0 /dev/null"
			}
		}
		if want := []string{"0 /dev/null", "1 pipe", "2 pipe"}; !slices.Equal(f.Descriptors, want) {
			t.Errorf("%v: descriptors %q, want %q", listen, f.Descriptors, want)
		}
	}
}

func TestServingEndsWhereNoProgramStarts(t *testing.T) {
	s, _, _ := sandbox(t)
	s.Args = []string{"/no/such"}
	served := false
	s.Services = []Service{{"127.0.0.1:8006", func(l net.Listener) { served = true; l.Accept() }}}
	if _, err := run(t, t.Context(), s); !errors.Is(err, ErrProgram) || !served {
		t.Errorf("%v (served: %v), want that there is no program", err, served)
	}

	s, _, _ = sandbox(t, "exit", "0")
	s.Root = filepath.Join(s.Root, "gone")
	s.Services = []Service{{"127.0.0.1:8006", func(l net.Listener) { l.Accept() }}}
	if _, err := run(t, t.Context(), s); err == nil || !strings.Contains(err.Error(), "sandbox: root: overlay") {
		t.Errorf("%v, want that there is no root", err)
	}
}

func TestAddressesThatAreRefused(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:8006", "[::]:80", "[2001:db8::7]:80", "224.0.0.1:80", "[fe80::1%lo]:80", "127.0.0.1:0", "127.0.0.1", "localhost:80", ":80", "[::ffff:127.0.0.1]:80"} {
		s := Spec{Args: []string{"x"}, UID: 1, GID: 1, Services: []Service{{listen, func(net.Listener) {}}}}
		if err := s.check(); err == nil || !strings.Contains(err.Error(), "want an IPv4 address or ::1") {
			t.Errorf("%s: %v", listen, err)
		}
	}
	s := Spec{Args: []string{"x"}, UID: 1, GID: 1, Services: []Service{{Addr: "127.0.0.1:80"}}}
	if err := s.check(); err == nil || !strings.Contains(err.Error(), "nobody serves 127.0.0.1:80") {
		t.Error(err)
	}
	s.Services = make([]Service, maxServices+1)
	if err := s.check(); err == nil || !strings.Contains(err.Error(), "129 services, at most 128") {
		t.Error(err)
	}
}

// Each address is served by its own, a low port too, and as many as there can be; the program can take none of them.
func TestEachServiceHasItsAddress(t *testing.T) {
	var services []Service
	want := map[string]string{}
	for i := range maxServices {
		addr := fmt.Sprintf("127.69.%d.1:80", i)
		services = append(services, Service{addr, func(l net.Listener) {
			http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, i) }))
		}})
		want["http://"+addr] = fmt.Sprintf("200 %d <nil>", i)
	}
	// What is not loopback's is taken as it is, and no network around it.
	for i, addr := range []string{"192.0.2.7:443", "192.0.2.7:80", "10.9.8.7:80", "[::1]:80"} {
		delete(want, "http://"+services[i].Addr)
		services[i].Addr = addr
		want["http://"+addr] = fmt.Sprintf("200 %d <nil>", i)
	}
	for addr, said := range map[string]string{"192.0.2.7:81": "refused", "192.0.2.8:80": "unreachable", "10.9.8.8:80": "unreachable", "[2001:db8::8]:80": "unreachable"} {
		want["http://"+addr] = said
	}
	s, stdout, stderr := sandbox(t, append([]string{"fetch"}, slices.Collect(maps.Keys(want))...)...)
	s.Services = services
	mustRun(t, s, Outcome{})
	var got map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout, stderr)
	}
	for url, said := range got {
		for _, failure := range []string{"refused", "unreachable"} {
			if strings.HasSuffix(said, failure) {
				got[url] = failure
			}
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestFilesAreTheProgramsToRead(t *testing.T) {
	paths := []string{"/run/secrets/x", "/etc/app/y", "/tmp/z", "/cocos/w", "/taken", "/linked"}
	s, stdout, stderr := sandbox(t, append([]string{"files"}, paths...)...)
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	for _, err := range []error{
		os.WriteFile(victim, []byte("as it was"), 0o666),
		os.Symlink(outside, filepath.Join(s.Root, "run")),
		os.Symlink(victim, filepath.Join(s.Root, "linked")),
		os.WriteFile(filepath.Join(s.Root, "taken"), []byte("the image's"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before := names(s.Root)
	want := map[string]string{}
	for i, p := range paths {
		data := []byte(fmt.Sprintf("secret %d\x00\xff", i))
		s.Files = append(s.Files, File{p, data})
		want[p] = fmt.Sprintf("%q <nil> -r--------", data)
	}
	mustRun(t, s, Outcome{})
	var got map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout, stderr)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "as it was" || len(names(outside)) != 1 {
		t.Errorf("outside: %q, %v, %q", b, err, names(outside))
	}
	if after := names(s.Root); !slices.Equal(before, after) {
		t.Errorf("the image had %q and has %q", before, after)
	}
	if b, _ := os.ReadFile(filepath.Join(s.Root, "taken")); string(b) != "the image's" {
		t.Errorf("the image's file is %q", b)
	}
}

func TestAFileCannotStandWhereAFolderIs(t *testing.T) {
	s, _, _ := sandbox(t, "exit", "0")
	if err := os.Mkdir(filepath.Join(s.Root, "opt"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Files = []File{{"/opt", nil}}
	if _, err := run(t, t.Context(), s); !errors.Is(err, ErrProgram) || !strings.Contains(err.Error(), "/opt: is a folder in the image") {
		t.Error(err)
	}
}

func TestFilesThatAreRefused(t *testing.T) {
	for name, files := range map[string][]File{
		"relative": {{"x", nil}}, "up": {{"/x/../y", nil}}, "the root": {{"/", nil}}, "NUL": {{"/x\x00", nil}}, "a folder": {{"/x/", nil}},
		"datasets": {{"/cocos/datasets/x", nil}}, "above the datasets": {{"/cocos", nil}}, "results": {{"/cocos/results", nil}},
		"/dev": {{"/dev/null", nil}}, "/proc": {{"/proc", nil}}, "twice": {{"/x", nil}, {"/x", nil}}, "one in the other": {{"/x/y", nil}, {"/x", nil}},
		"too large": {{"/x", make([]byte, maxFileBytes+1)}}, "too many": make([]File, maxFileCount+1),
	} {
		if err := checkFiles(files); !errors.Is(err, ErrProgram) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAFileShowsNoBytes(t *testing.T) {
	f := File{"/x", Secret("hunter2")}
	j, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprintf("%v %+v %#v %s %q %x", f, f, f, f, f, f), string(j)} {
		if strings.Contains(s, "hunter2") || strings.Contains(s, "aHVudGVyMg") || strings.Contains(s, "68756e74") || strings.Contains(s, "104") {
			t.Error(s)
		}
	}
}
