package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/paravisor"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
	"github.com/ampoule-vm/ampoule/qemu"
)

// TestAzure is the whole product as it is on Azure: no TEE that the guest could ask, but a TPM in which a paravisor keeps its
// report, and a metadata service that has what vouches for it. The manifest is bound by PCR 8, which the guest extends.
func TestAzure(t *testing.T) {
	for _, kind := range []evidence.Kind{evidence.AzSNPvTPM, evidence.AzTDXvTPM} {
		t.Run(string(kind), func(t *testing.T) {
			r := newTrial(t, nil, "ran", "look")
			r.manifest = bytes.ReplaceAll(r.manifest, []byte("10.0.2.2"), []byte(qemu.AzureHost))
			r.onAzure(kind)
			r.unbound = true
			r.run()
			r.ends("", result.OK, 0)
			results := r.open()
			r.read(filepath.Join(results, "results/ran"))
			// A workload that reaches the TPM can speak for the machine.
			var seen map[string]string
			if err := json.Unmarshal([]byte(r.read(filepath.Join(results, "results/look.json"))), &seen); err != nil {
				t.Fatal(err)
			}
			for _, door := range []string{"/dev/tpmrm0", "/dev/tpm0", "metadata service"} {
				if got, ok := seen[door]; !ok || got == "open" {
					t.Errorf("%s: %q, want an error", door, got)
				}
			}
			if said := r.brokerSaid(); !strings.Contains(said, "tee="+string(kind)) || !strings.Contains(said, "initdata_sent=true") {
				t.Errorf("the broker saw\n%s", said)
			}

			b := []byte(r.read(r.report.ReceiptPath))
			receipt, statement, err := result.ParseReceipt(b)
			if err != nil {
				t.Fatal(err)
			}
			if s := statement.Predicate.Binding; s != result.BindRuntime {
				t.Errorf("the receipt says binding %q, want %q", s, result.BindRuntime)
			}
			if receipt.Evidence.Kind != string(kind) || !bytes.Contains(receipt.Evidence.Evidence, []byte(`"version":2`)) {
				t.Errorf("evidence of kind %s: %.40s…", receipt.Evidence.Kind, receipt.Evidence.Evidence)
			}
			intel, err := verify.LoadIntelRoot(r.world.PSP.TDXRootPEM())
			if err != nil {
				t.Fatal(err)
			}
			m, err := r.cfg.Measurement()
			if err != nil {
				t.Fatal(err)
			}
			want := verify.Expect{Roots: []verify.Root{r.root()}, Intel: intel, Measurements: []evidence.Measurement{m}, Manifest: r.manifest, ResultSHA256: r.sum(r.report.ResultPath)}
			if v, err := verify.Receipt(b, want); err != nil || !v.Proven || !v.Simulated {
				t.Errorf("the receipt under the test roots: %+v, %v", v, err)
			}
			ev, err := evidence.FromJSON(kind, receipt.Evidence.Evidence)
			if err != nil {
				t.Fatal(err)
			}
			digest := manifest.InitdataDigest(manifest.Wrap(r.manifest))
			if want := evidence.InRegister(evidence.PCR8, digest[:]); !bytes.Equal(ev.TPM.PCRs[8][:], want) {
				t.Errorf("PCR 8 is %x, want %x", ev.TPM.PCRs[8], want)
			}
			want.Roots, want.Intel = nil, nil
			if v, err := verify.Receipt(b, want); err == nil || v != nil {
				t.Error("the receipt of a simulated guest holds under the makers' roots")
			}
		})
	}
}

// TestAzureMeasured: a PCR 8 that is in use before this boot ends it before the manifest counts.
func TestAzureMeasured(t *testing.T) {
	r := newTrial(t, nil, "ran")
	r.manifest = bytes.ReplaceAll(r.manifest, []byte("10.0.2.2"), []byte(qemu.AzureHost))
	tpm := r.onAzure(evidence.AzSNPvTPM)
	if _, err := tpm.Send(slices.Concat([]byte{0x80, 2, 0, 0, 0, 65, 0, 0, 1, 0x82, 0, 0, 0, 8, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 11},
		bytes.Repeat([]byte{7}, 32))); err != nil { // TPM2_PCR_Extend of PCR 8
		t.Fatal(err)
	}
	r.unbound = true
	r.run()
	r.ends("bind", result.NotBound, 3)
	r.notRun()
}

// onAzure takes the simulated processor out of the VM, and puts a paravisor around it that runs on the same one.
func (r *trial) onAzure(kind evidence.Kind) *paravisor.Paravisor {
	r.Helper()
	r.cfg.Simulated = false
	m, err := r.cfg.Measurement()
	if err != nil {
		r.Fatal(err)
	}
	chip, launch := r.world.PSP, psp.Launch{Measurement: m}
	if err := os.MkdirAll(r.cfg.Dir, 0o755); err != nil {
		r.Fatal(err)
	}
	tpm, stop, err := paravisor.Software(r.Context(), r.TempDir())
	if errors.Is(err, exec.ErrNotFound) {
		r.Skip("no swtpm here (Debian package swtpm)")
	}
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(stop)
	o := paravisor.Options{Kind: kind, Hardware: func(data [64]byte) ([]byte, error) { return chip.Report(launch, data) }}
	if kind == evidence.AzTDXvTPM {
		o.Hardware = func(data [64]byte) ([]byte, error) {
			return slices.Concat(make([]byte, 128), data[:], make([]byte, 1024-192)), nil // REPORTDATA of a TDREPORT
		}
	}
	p, err := paravisor.Provision(tpm, o)
	if err != nil {
		r.Fatal(err)
	}
	table, err := chip.Certs()
	if err != nil {
		r.Fatal(err)
	}
	certs, err := evidence.ParseCerts(table)
	if err != nil {
		r.Fatal(err)
	}
	imds := &paravisor.IMDS{Quote: func(report []byte) ([]byte, error) { return chip.Quote(launch, [64]byte(report[128:])) }}
	for _, c := range certs {
		if c.Type == "VCEK" {
			imds.VCEK = c.DER
		}
	}
	service := httptest.NewServer(imds)
	r.Cleanup(service.Close)
	program, err := bridge()
	if err != nil {
		r.Fatal(err)
	}
	// Not below Dir: the path of a socket is short.
	dir, err := os.MkdirTemp(work, "tpm")
	if err != nil {
		r.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		r.Fatal(err)
	}
	var emulator sync.WaitGroup
	emulator.Go(func() {
		if err := paravisor.Emulate(l, p); err != nil && !errors.Is(err, context.Canceled) {
			r.Error(err)
		}
	})
	r.Cleanup(emulator.Wait)
	r.Cleanup(func() { l.Close() })
	r.cfg.Azure = &qemu.Azure{TPM: socket, IMDS: program + " " + service.Listener.Addr().String()}
	return p
}

var bridge = sync.OnceValues(func() (string, error) {
	path := filepath.Join(work, "bridge")
	out, err := exec.Command("go", "build", "-trimpath", "-o", path, "./bridge").CombinedOutput()
	if err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})
