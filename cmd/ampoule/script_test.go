package main

import (
	"archive/zip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/result"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ampoule": main})
}

// TestScripts runs testdata/*.txt: each is a session in a shell, with these commands on top of testscript's own.
//
//	exits CODE PROGRAM ARG…    runs it, and wants this exit status and, on failure, one error on standard error
//	object [NAME[=VALUE]]…     standard output is one JSON object, with these members
//	registry                   starts one that holds algo:v1, and sets REGISTRY and DIGEST
//	locked CA AUTH             starts one with TLS and a login; writes its certificate and a containers-auth.json; sets LOCKED
//	keypair NAME               makes NAME.pem, an EC key, and NAME.pub.pem
//	layout DIR                 writes an image as an OCI layout
//	mode OCTAL FILE            holds a file's permissions against these
//	same FILE FILE             as cmp, without printing what may be a key
//	identity FILE              makes an age identity, and sets RECIPIENT
//	finished MANIFEST          makes what a run leaves: result.tar.zst.age (for identity), receipt.json, test-root.pem; sets MEASUREMENT
//	zipped FILE NAME=TEXT…     fails unless these are the zip's files, dated 1970
//	flip FILE                  changes the last byte of a file
//	broker LOG ARG…            starts ampoule kbs, sets BROKER; broker stop ends it
//	fill FILE                  puts variables of the script in the place of ${NAME} in a file
func TestScripts(t *testing.T) {
	chipDir := t.TempDir()
	chip := sync.OnceValues(func() (*psp.PSP, error) { return psp.New(chipDir) }) // its RSA keys take seconds
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":    exits,
			"object":   jsonObject,
			"registry": startRegistry,
			"locked":   lockedRegistry,
			"keypair":  keypair,
			"layout":   layout,
			"mode":     mode,
			"same":     same,
			"identity": identity,
			"cosign":   cosign,
			"flip":     flip,
			"zipped":   zipped,
			"fill":     fill,
			"broker":   serveBroker(),
			"finished": func(ts *testscript.TestScript, neg bool, args []string) {
				words(ts, neg, args, 1, "finished MANIFEST")
				p, err := chip()
				ts.Check(err)
				ts.Check(finished(ts, p, args[0]))
			},
		},
	})
}

func words(ts *testscript.TestScript, neg bool, args []string, n int, usage string) {
	if neg || len(args) != n {
		ts.Fatalf("usage: %s", usage)
	}
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG…")
	}
	code := "0"
	err := ts.Exec(args[1], args[2:]...)
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code = fmt.Sprint(e.ExitCode())
	} else {
		ts.Check(err)
	}
	if code != args[0] {
		ts.Fatalf("exit status %s, want %s", code, args[0])
	}
	if n := strings.Count("\n"+ts.ReadFile("stderr"), "\nerror: "); code != "0" && n > 1 {
		ts.Fatalf("%d errors on standard error, want one", n)
	}
}

func jsonObject(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: object [NAME[=VALUE]]…")
	}
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	var got map[string]any
	ts.Check(d.Decode(&got))
	if _, err := d.Token(); err != io.EOF {
		ts.Fatalf("standard output goes on after the object: %v", err)
	}
	for _, a := range args {
		name, want, exact := strings.Cut(a, "=")
		v, ok := got[name]
		if !ok || exact && fmt.Sprint(v) != want {
			ts.Fatalf("member %s is %v, want %q", name, v, want)
		}
	}
}

// testImage differs at each call, as a digest that a script knows beforehand would prove little.
func testImage() (v1.Image, error) {
	return demo.Image(map[string]string{"algo": rand.Text()}, v1.Config{Entrypoint: []string{"/algo"}})
}

func startRegistry(ts *testscript.TestScript, neg bool, args []string) {
	words(ts, neg, args, 0, "registry")
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	ts.Defer(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	img, err := testImage()
	ts.Check(err)
	pinned, err := image.Push(context.Background(), img, "docker://"+host+"/algo:v1", image.Options{PlainHTTP: true})
	ts.Check(err)
	_, digest, _ := strings.Cut(pinned, "@")
	ts.Setenv("REGISTRY", host)
	ts.Setenv("DIGEST", digest)
}

func lockedRegistry(ts *testscript.TestScript, neg bool, args []string) {
	words(ts, neg, args, 2, "locked CA AUTH")
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "owner" || password != "open sesame" {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	ts.Defer(s.Close)
	host := strings.TrimPrefix(s.URL, "https://")
	auth := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, base64.StdEncoding.EncodeToString([]byte("owner:open sesame")))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(auth), 0o600))
	ts.Setenv("LOCKED", host)
}

func keypair(ts *testscript.TestScript, neg bool, args []string) {
	words(ts, neg, args, 1, "keypair NAME")
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	private, err := x509.MarshalPKCS8PrivateKey(k)
	ts.Check(err)
	public, err := x509.MarshalPKIXPublicKey(k.Public())
	ts.Check(err)
	ts.Check(newPEM(ts.MkAbs(args[0]+".pem"), "PRIVATE KEY", private, 0o600))
	ts.Check(newPEM(ts.MkAbs(args[0]+".pub.pem"), "PUBLIC KEY", public, 0o644))
}

func layout(ts *testscript.TestScript, neg bool, args []string) {
	words(ts, neg, args, 1, "layout DIR")
	img, err := testImage()
	ts.Check(err)
	ts.Check(image.Save(img, ts.MkAbs(args[0])))
}

func mode(ts *testscript.TestScript, neg bool, args []string) {
	words(ts, neg, args, 2, "mode OCTAL FILE")
	fi, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", fi.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

func same(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] same FILE FILE")
	}
	if equal := ts.ReadFile(args[0]) == ts.ReadFile(args[1]); equal == neg {
		ts.Fatalf("%s and %s: same is %v", args[0], args[1], equal)
	}
}

func identity(ts *testscript.TestScript, neg bool, args []string) {
	words(ts, neg, args, 1, "identity FILE")
	id, err := age.GenerateX25519Identity()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte("# a comment\n"+id.String()+"\n"), 0o600))
	ts.Setenv("RECIPIENT", id.Recipient().String())
}

func flip(ts *testscript.TestScript, neg bool, args []string) {
	words(ts, neg, args, 1, "flip FILE")
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b[len(b)-1] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

func fill(ts *testscript.TestScript, neg bool, args []string) {
	words(ts, neg, args, 1, "fill FILE")
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
}

// finished writes what a VM would have sent, signed by the chip that would have signed it.
func finished(ts *testscript.TestScript, p *psp.PSP, file string) error {
	raw := []byte(ts.ReadFile(file))
	m, err := manifest.Parse(raw, func(string) bool { return true })
	if err != nil {
		return err
	}
	boot := []result.File{{Name: result.BootLogName, Data: []byte("msg=memory peak_kib=1\n")}}
	tree := result.Tree{Dir: ts.MkAbs("results"), Limit: 1 << 20}
	var digests result.Digests
	for name, to := range map[string][]string{result.ClearName: nil, result.SealedName: {ts.Getenv("RECIPIENT")}} {
		f, err := os.Create(ts.MkAbs(name))
		if err != nil {
			return err
		}
		d, err := result.Pack(f, to, tree, boot)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if to != nil {
			digests = d
		}
	}
	old, err := os.Create(ts.MkAbs("old.tar"))
	if err != nil {
		return err
	}
	if err := errors.Join(result.WriteTar(old, [32]byte{}, tree, boot), old.Close()); err != nil {
		return err
	}

	var launch psp.Launch
	rand.Read(launch.Measurement[:])
	launch.HostData = manifest.InitdataDigest(manifest.Wrap(raw))
	sum, exit := m.SHA384(), 0
	quick := evidence.Evidence{Kind: evidence.SNP}
	if quick.Report, err = p.Report(launch, [64]byte{}); err != nil {
		return err
	}
	statement, err := result.NewStatement(result.Predicate{
		Completed: time.Now().UTC().Format(result.TimeFormat), Build: result.Build{Init: "test", Cmdline: strings.Repeat("00", 32)},
		TEE: result.TEE{Kind: "snp", TCB: hex.EncodeToString(quick.TCB())}, Profile: "simulation", Binding: result.BindLaunch, Sealed: true, Reason: result.OK,
		ManifestSHA384: hex.EncodeToString(sum[:]), InitdataSHA256: hex.EncodeToString(launch.HostData[:]),
		Measurement: launch.Measurement.String(), Workload: result.Ending{Exit: &exit, Ended: 1},
	}, result.NewSubject(result.SealedName, digests.Sealed[:]), result.NewSubject(result.TarName, digests.Tar[:]))
	if err != nil {
		return err
	}
	report, err := p.Report(launch, result.ReportData(statement))
	if err != nil {
		return err
	}
	certs, err := p.Certs()
	if err != nil {
		return err
	}
	ev := evidence.Evidence{Kind: evidence.SNP, Report: report, Aux: certs}
	body, err := ev.JSON()
	if err != nil {
		return err
	}
	receipt, err := result.NewReceipt(statement, string(ev.Kind), body)
	if err != nil {
		return err
	}
	ts.Setenv("MEASUREMENT", launch.Measurement.String())
	return errors.Join(
		os.WriteFile(ts.MkAbs("receipt.json"), receipt, 0o600),
		os.WriteFile(ts.MkAbs("test-root.pem"), p.RootPEM(), 0o600))
}

// Every verb explains itself, on standard error, and takes no flag that it does not know.
func TestHelp(t *testing.T) {
	for _, v := range verbs {
		var out, text strings.Builder
		std := stdio{strings.NewReader(""), &out, &text}
		if code := dispatch(t.Context(), []string{v.name, "-h"}, std); code != 0 {
			t.Errorf("ampoule %s -h exits %d:\n%s", v.name, code, &text)
		}
		if !strings.HasPrefix(text.String(), "usage: ampoule "+v.name) || out.Len() > 0 {
			t.Errorf("ampoule %s -h printed %q, and to standard output %q", v.name, &text, &out)
		}
		text.Reset()
		if code := dispatch(t.Context(), []string{v.name, "--nonsense"}, std); code != 2 {
			t.Errorf("ampoule %s --nonsense exits %d:\n%s", v.name, code, &text)
		}
		if lines := strings.Count(text.String(), "\n"); lines != 1 || !strings.Contains(text.String(), "-nonsense") {
			t.Errorf("ampoule %s --nonsense: %q", v.name, &text)
		}
	}
}

func zipped(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: zipped FILE NAME=TEXT…")
	}
	z, err := zip.OpenReader(ts.MkAbs(args[0]))
	ts.Check(err)
	defer z.Close()
	var got []string
	for _, f := range z.File {
		r, err := f.Open()
		ts.Check(err)
		b, err := io.ReadAll(r)
		ts.Check(err)
		if f.Modified.Unix() != 0 {
			ts.Fatalf("%s is dated %v", f.Name, f.Modified)
		}
		got = append(got, f.Name+"="+strings.TrimSpace(string(b)))
	}
	if !slices.Equal(got, args[1:]) {
		ts.Fatalf("the zip has %q, want %q", got, args[1:])
	}
}
