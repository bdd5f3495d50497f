package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// chipDevice is a guest on a simulated processor, without the guest.
type chipDevice struct {
	chip   *psp.PSP
	launch psp.Launch
}

func (chipDevice) Kind() evidence.Kind { return evidence.SNP }

func (d chipDevice) Evidence(_ context.Context, data [64]byte) (evidence.Evidence, error) {
	report, err := d.chip.Report(d.launch, data)
	if err != nil {
		return evidence.Evidence{}, err
	}
	certs, err := d.chip.Certs()
	return evidence.Evidence{Kind: evidence.SNP, Report: report, Aux: certs}, err
}

// TestWhyTheBrokerRefused: the embedded broker refuses for real, and the owner reads in one place which claim it was.
func TestWhyTheBrokerRefused(t *testing.T) {
	chip, err := psp.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root, err := verify.LoadRoot(chip.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "audit")
	const path = "default/key/algo-key"
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "keys/default/key"), 0o700), os.WriteFile(filepath.Join(dir, "keys", path), []byte("key"), 0o600),
		os.WriteFile(file, []byte("a line of an earlier run, which nobody reads\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	audit, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer audit.Close()
	initdata := manifest.Wrap([]byte("{}"))
	launch := psp.Launch{Measurement: evidence.Measurement{1}, HostData: manifest.InitdataDigest(initdata)}
	run := runFacts{Measurement: launch.Measurement, Initdata: kbsserver.Digest(launch.HostData).String()}

	ask := func(roots []verify.Root, policy kbsserver.Policy) []kbsserver.Decision {
		t.Helper()
		l, err := openBrokerLog(file)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(policy)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "policy.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		broker, err := kbsserver.New(kbsserver.Config{Dir: dir, Roots: roots, Audit: audit, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewServer(broker)
		defer s.Close()
		_, err = kbs.Exchange(t.Context(), []kbs.Broker{{URL: s.URL, AllowHTTP: true}}, chipDevice{chip, launch}, initdata, []kbs.Want{{Broker: s.URL, Path: path}})
		if _, ok := errors.AsType[*kbs.DeniedError](err); !ok {
			t.Fatalf("%v, want a refusal", err)
		}
		denials, err := l.denials()
		if err != nil || len(denials) != 1 {
			t.Fatalf("%+v, %v", denials, err)
		}
		return denials
	}
	rule := func(m evidence.Measurement, d [32]byte) kbsserver.Policy {
		return kbsserver.Policy{"default/key/*": {Measurements: []evidence.Measurement{m}, InitData: []kbsserver.Digest{d}}}
	}
	ours, other := []verify.Root{root}, evidence.Measurement{2}
	for name, c := range map[string]struct {
		roots  []verify.Root
		policy kbsserver.Policy
		run    runFacts
		want   []string
	}{
		"another measurement": {ours, rule(other, launch.HostData), run,
			[]string{path, "claim     measurement", "expected  " + other.String(), "actual    " + launch.Measurement.String(), "the measurement of this run"}},
		"another guest": {ours, rule(other, launch.HostData), runFacts{Measurement: other, Initdata: run.Initdata},
			[]string{"another guest asked", "this run's measurement is " + other.String()}},
		"another manifest": {ours, rule(launch.Measurement, [32]byte{9}), run,
			[]string{"claim     init_data", "expected  09000000", "actual    " + run.Initdata, "the digest of this run's manifest"}},
		"no rule":        {ours, kbsserver.Policy{}, run, []string{"claim     resource", "no rule of policy.json"}},
		"the real roots": {nil, rule(launch.Measurement, launch.HostData), run, []string{"its evidence", "cause", "--test-root"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := explain(ask(c.roots, c.policy)[0], c.run)
			for _, w := range c.want {
				if !strings.Contains(text, w) {
					t.Errorf("lacks %q:\n%s", w, text)
				}
			}
		})
	}
}

// TestBrokerLog: what is not there is empty, what is not a log is an error, and no guest steers the terminal.
func TestBrokerLog(t *testing.T) {
	if l, err := openBrokerLog(""); l != nil || err != nil {
		t.Errorf("%v, %v", l, err)
	}
	if _, err := openBrokerLog(t.TempDir()); err == nil {
		t.Error("a folder is a log")
	}
	file := filepath.Join(t.TempDir(), "audit")
	l, err := openBrokerLog(file)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := l.denials(); err != nil || d != nil {
		t.Errorf("%v, %v", d, err)
	}
	line := `{"time":"2026-11-24T01:02:03Z","session":"aa","tee":"\u001b[2J","decision":"refused","claim":"tee","expected":"snp","actual":"\u001b[2J"}` + "\n"
	accepted := `{"time":"2026-11-24T01:02:03Z","session":"aa","tee":"snp","decision":"accepted"}` + "\n"
	if err := os.WriteFile(file, []byte(accepted+line), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := l.denials()
	if err != nil || len(d) != 1 {
		t.Fatalf("%+v, %v", d, err)
	}
	if text := explain(d[0], runFacts{}); strings.Contains(text, "\x1b") || !strings.Contains(text, `\x1b[2J`) {
		t.Errorf("%q", text)
	}
	if err := os.WriteFile(file, []byte("no log\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.denials(); err == nil {
		t.Error("garbage is a log")
	}
}
