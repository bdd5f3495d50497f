package test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/mkimage"
)

// TestChangedCommandLine: one changed byte is another measurement, and the broker gives nothing to it.
func TestChangedCommandLine(t *testing.T) {
	r := newTrial(t, nil, "ran")
	r.cfg.Cmdline = strings.Replace(r.cfg.Cmdline, "loglevel=3", "loglevel=2", 1)
	if r.cfg.Cmdline == r.accepted {
		t.Fatalf("nothing to change in %q", r.accepted)
	}
	r.run()
	r.ends("attest", result.Denied, 3)
	r.notRun()
	if said := r.brokerSaid(); !strings.Contains(said, r.report.Measurement.String()) {
		t.Errorf("the broker's log does not name the measurement that it refused:\n%s", said)
	}
	if log := r.ownersLog(); !strings.Contains(log, "PolicyDeny") {
		t.Errorf("the owner's sealed log does not say why:\n%s", log)
	}
}

// TestChangedManifest: the host hands over another manifest than the launch is bound to.
func TestChangedManifest(t *testing.T) {
	r := newTrial(t, nil, "ran")
	r.bound = r.manifest
	r.manifest = bytes.Replace(r.manifest, []byte("ran"), []byte("say"), 1)
	r.run()
	r.ends("bind", result.NotBound, 3)
	r.notRun()
	if r.report.ResultPath != "" {
		t.Error("something was sealed to recipients whom an unbound manifest names")
	}
	if said := r.brokerSaid(); said != "" {
		t.Errorf("the broker was asked:\n%s", said)
	}
}

// TestFlippedBit: the registry alters one bit of one blob.
func TestFlippedBit(t *testing.T) {
	var flipped atomic.Bool
	r := newTrial(t, func(registry http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
				w = &flipper{ResponseWriter: w, at: 1000, done: &flipped}
			}
			registry.ServeHTTP(w, req)
		})
	}, "ran")
	r.run()
	if !flipped.Load() {
		t.Fatal("no bit was flipped")
	}
	r.ends("pull", result.BadImage, 1)
	r.notRun()
}

// A flipper turns over one bit of a body, at byte at.
type flipper struct {
	http.ResponseWriter
	at   int
	done *atomic.Bool
}

func (f *flipper) Write(p []byte) (int, error) {
	if f.at >= 0 && f.at < len(p) {
		p = bytes.Clone(p)
		p[f.at] ^= 0x10
		f.done.Store(true)
	}
	f.at -= len(p)
	return f.ResponseWriter.Write(p)
}

// TestWrongKey: the broker has another key than the image was encrypted with.
func TestWrongKey(t *testing.T) {
	r := newTrial(t, nil, "ran")
	if err := r.world.SetKey(demo.DatasetKey, image.NewKey()); err != nil {
		t.Fatal(err)
	}
	r.run()
	r.ends("pull", result.BadImage, 1)
	r.notRun()
}

// TestPlainImage: where the manifest says encrypted, an image in clear is refused before any key is asked for.
func TestPlainImage(t *testing.T) {
	r := newTrial(t, nil)
	r.job.Dataset = r.publish("plain", "", r.fileImage(map[string]string{"numbers.csv": "4\n"}), false)
	r.manifest = r.world.Manifest(r.job)
	r.run()
	r.ends("resolve", result.BadImage, 1)
	r.notRun()
	if said := r.brokerSaid(); said != "" {
		t.Errorf("the broker was asked:\n%s", said)
	}
}

// TestBrokerDown: nobody listens at the broker's address.
func TestBrokerDown(t *testing.T) {
	r := newTrial(t, nil, "ran")
	l := listen(t)
	l.Close()
	r.world.Broker = guestURL(l)
	r.manifest = r.world.Manifest(r.job)
	r.run()
	r.ends("attest", result.Denied, 3)
	r.notRun()
}

// TestBrokerSilent: the broker takes the connection and never answers; the run's deadline ends it.
func TestBrokerSilent(t *testing.T) {
	r := newTrial(t, nil, "ran")
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			go io.Copy(io.Discard, c)
		}
	}()
	r.world.Broker = guestURL(l)
	r.manifest = r.world.Manifest(r.job)
	r.cfg.Cmdline += " ampoule.deadline=30s"
	r.accepted = r.cfg.Cmdline
	r.run()
	r.ends("attest", result.Deadline, 1)
	r.notRun()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// guestURL is how the VM reaches a listener on this machine's loopback.
func guestURL(l net.Listener) string {
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return "http://10.0.2.2:" + port
}

// TestCommandLineKeys: a key of ours that is unknown or repeated ends the boot.
func TestCommandLineKeys(t *testing.T) {
	for name, extra := range map[string]string{"unknown": " ampoule.debug=1", "repeated": " ampoule.net=none"} {
		t.Run(name, func(t *testing.T) {
			r := newTrial(t, nil, "ran")
			r.cfg.Cmdline += extra
			r.accepted = r.cfg.Cmdline
			r.run()
			r.ends("mount", result.BadManifest, 1)
			r.notRun()
		})
	}
}

// TestPanic: a step that panics is reported as internal, its text stays off the console, and the power is cut.
func TestPanic(t *testing.T) {
	dir, info := faulty.get(t, mkimage.Options{Profile: cmdline.Simulation, Net: "dhcp", Tags: []string{"ampoule_fault"}})
	r := newTrial(t, nil, "ran")
	r.cfg.Initrd, r.cfg.Cmdline, r.accepted = filepath.Join(dir, mkimage.InitramfsFile), info.Cmdline, info.Cmdline
	r.run()
	r.ends("resolve", result.Internal, 1)
	r.notRun()
	if log := r.ownersLog(); !strings.Contains(log, "SECRET-TEXT") {
		t.Errorf("the owner's sealed log does not have the panic:\n%s", log)
	}
}

// TestProductionWithoutTEE: a production image on a machine without a TEE, even beside a simulated processor that would
// answer, does nothing.
func TestProductionWithoutTEE(t *testing.T) {
	dir, info := production.get(t, mkimage.Options{Profile: cmdline.Production, Net: "dhcp"})
	r := newTrial(t, nil, "ran")
	r.cfg.Kernel, r.cfg.Initrd = filepath.Join(dir, mkimage.KernelFile), filepath.Join(dir, mkimage.InitramfsFile)
	r.cfg.Cmdline, r.accepted, r.banner = info.Cmdline, info.Cmdline, "ampoule"
	r.run()
	r.ends("platform", result.NoTEE, 1)
	r.notRun()
}

// TestSizes holds the budgets: kernel and initramfs have 9 MB together, and a UKI 9.5.
func TestSizes(t *testing.T) {
	for _, profile := range []string{cmdline.Production, cmdline.Simulation} {
		var image builtImage
		_, info := image.get(t, mkimage.Options{Profile: profile, Net: "dhcp", Formats: []string{mkimage.UKI}})
		kernel, initramfs := info.File(mkimage.KernelFile).Size, info.File(mkimage.InitramfsFile).Size
		uki := info.File(mkimage.UKIFile).Size
		t.Logf("%s: kernel %d + initramfs %d = %d bytes, UKI %d, init %d", profile, kernel, initramfs, kernel+initramfs, uki, info.Init.Size)
		if kernel+initramfs > 9_000_000 {
			t.Errorf("%s: kernel %d and initramfs %d bytes are over 9000000 together", profile, kernel, initramfs)
		}
		if uki == 0 || uki > 9_500_000 {
			t.Errorf("%s: the UKI has %d bytes, over 9500000 or none", profile, uki)
		}
	}
}

// inline is raw as a manifest source on the command line.
func inline(t *testing.T, raw []byte) cmdline.Source {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return cmdline.Source{Kind: "cmdline", Arg: base64.RawURLEncoding.EncodeToString(b.Bytes())}
}
