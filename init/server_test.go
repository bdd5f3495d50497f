package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cvms"
	"github.com/ampoule-vm/ampoule/internal/cvms/cvmstest"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// A served is a flow whose manifest comes from a computation server.
type served struct {
	*flow
	job     cvmstest.Job
	key     []byte // PEM, of the consumer
	request string
	while   func(*cvmstest.Stream) // what the server does when it has sent the request
	server  *cvmstest.Server
	said    chan []string // all that the server heard
}

func newServed(t *testing.T) *served {
	t.Helper()
	f := &served{flow: newFlow(t), while: func(*cvmstest.Stream) {}, said: make(chan []string, 1)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err1 := x509.MarshalPKCS8PrivateKey(key)
	public, err2 := x509.MarshalPKIXPublicKey(key.Public())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	f.key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	f.job = cvmstest.Job{
		ID: "c-1", Algorithm: f.publish("algorithm", demo.AlgorithmKey, map[string]string{"algorithm.py": "pass"}), AlgorithmKey: demo.AlgorithmKey,
		Dataset: f.publish("dataset", demo.DatasetKey, map[string]string{"data": "1\n"}), DatasetKey: demo.DatasetKey, Filename: "table.csv",
		Broker: f.world.Broker, Arg: "x", Consumer: public,
	}
	f.request, f.raw = f.job.Request(), f.job.Manifest() // two spellings, each written by hand
	f.server = cvmstest.Serve(t, func(s *cvmstest.Stream) error {
		s.Request(f.request, 100)
		f.while(s)
		f.said <- s.HearAll()
		return nil
	})
	f.line += " ampoule.net=dhcp ampoule.manifest=cvms:" + f.server.Addr
	return f
}

func (f *served) boot() {
	f.Helper()
	tamper := f.tamper
	f.tamper = func(m *machine) {
		m.fetchManifest = nil // nobody else is asked
		m.openServer = func(addr string, stop func()) server { return cvms.Open(addr, stop) }
		if tamper != nil {
			tamper(m)
		}
	}
	f.flow.boot()
}

func (f *served) heard(want ...string) {
	f.Helper()
	f.server.Close()
	select {
	case got := <-f.said:
		if !slices.Equal(got, append([]string{"report of 0"}, want...)) {
			f.Errorf("the server heard %q, want %q", got, want)
		}
	default:
		f.Error("the server was not asked")
	}
}

// opened is what the consumer's key opens.
func (f *served) opened() string {
	f.Helper()
	id, err := result.ParseIdentities(f.key)
	if err != nil {
		f.Fatal(err)
	}
	clear, err := result.Open(bytes.NewReader(f.peer.result), id)
	if err != nil {
		f.Fatal(err)
	}
	defer clear.Close()
	dir := f.TempDir()
	if err := result.ExtractTar(clear, dir, 1<<30); err != nil {
		f.Fatal(err)
	}
	return dir
}

// TestComputationServer: a launch that was bound to what the owner computed runs what the server sends, and the consumer opens the result.
func TestComputationServer(t *testing.T) {
	f := newServed(t)
	f.boot()
	f.ends("", result.OK, true)
	f.heard("c-1: taken", "c-1: ReceivingAlgorithm/InProgress", "c-1: ReceivingData/InProgress", "c-1: Running/Starting", "c-1: Running/InProgress",
		"c-1: Running/Completed", "c-1: ConsumingResults/Ready", "c-1: Complete/Completed")
	if v := f.verdict(); !v.Proven || v.Statement.Predicate.Binding != result.BindLaunch || v.Statement.Predicate.ComputationID != "c-1" {
		t.Errorf("verdict %+v", v)
	}
	if b, err := os.ReadFile(filepath.Join(f.opened(), "results/copy.csv")); err != nil || string(b) != "1\n" {
		t.Errorf("result %q, %v", b, err)
	}
}

// TestComputationServerRefused: what is wrong with a computation is found where it is for every source, and the server hears a reason.
func TestComputationServerRefused(t *testing.T) {
	taken, refused := []string{"c-1: taken", "c-1: Failed/Failed"}, []string{"c-1: refused, bad-manifest", "c-1: Failed/Failed"}
	denied := []string{"c-1: taken", "c-1: ReceivingAlgorithm/InProgress", "c-1: Failed/Failed"}
	short := func(s string) string { return strings.Replace(s, `AAAA=", "userKey"`, `", "userKey"`, 1) }
	for name, c := range map[string]struct {
		set    func(*served)
		step   string
		reason result.Reason
		heard  []string
	}{
		"another computation than the launch's": {func(f *served) { f.job.Arg = "y"; f.request = f.job.Request() }, "bind", result.NotBound, taken},
		"a hash that is short":                  {func(f *served) { f.request = short(f.request) }, "manifest", result.BadManifest, refused},
		"no algorithm":                          {func(f *served) { f.request = `{"id": "c-1"}` }, "manifest", result.BadManifest, refused},
		"no id":                                 {func(f *served) { f.job.ID = ""; f.request = f.job.Request() }, "manifest", result.BadManifest, nil},
		"nobody to seal to":                     {func(f *served) { f.job.Consumer = nil; f.request = f.job.Request() }, "manifest", result.BadManifest, refused},
		"a key that is gone":                    {func(f *served) { f.removeKey() }, "attest", result.Denied, denied},
	} {
		t.Run(name, func(t *testing.T) {
			f := newServed(t)
			c.set(f)
			f.boot()
			if o := f.peer.outcomes(); len(o) != 1 || o[0].Step != c.step || o[0].Reason != c.reason || f.started {
				t.Errorf("outcomes %+v, want one: %s in %q", o, c.reason, c.step)
			}
			f.heard(c.heard...)
		})
	}
}

// TestAServerOfNoImage: an image that was built without it refuses the source, and says how to build one.
func TestAServerOfNoImage(t *testing.T) {
	f := newFlow(t)
	f.line += " ampoule.allow=errors"
	f.line = strings.Replace(f.line, " ampoule.allow=http", "", 1) + " ampoule.net=dhcp ampoule.manifest=cvms:127.0.0.1:7001"
	f.boot()
	f.ends("manifest", result.BadManifest, false)
	if want := "cvms:127.0.0.1:7001: this image was built without --with cocos"; !strings.Contains(f.console.String(), want) {
		t.Errorf("the console does not say %q:\n%s", want, f.console)
	}
}

// TestTheServerStops the run: the workload ends as at its deadline, and nothing is sealed.
func TestTheServerStops(t *testing.T) {
	f := newServed(t)
	running := make(chan bool)
	f.while = func(s *cvmstest.Stream) {
		select {
		case <-running:
		case <-s.Context().Done(): // it did not come so far
		}
		s.Say(`{"stopComputation": {"computation_id": "c-1"}}`)
	}
	f.tamper = func(m *machine) {
		m.runWorkload = func(ctx context.Context, _ workload.Spec) (workload.Outcome, error) {
			f.started = true
			close(running)
			<-ctx.Done()
			return workload.Outcome{Signal: "SIGTERM", Deadline: true}, nil
		}
	}
	f.boot()
	if o := f.peer.outcomes(); len(o) != 1 || o[0].Step != "seal" || o[0].Reason != result.Deadline || f.peer.receipt != nil {
		t.Errorf("outcomes %+v, receipt of %d bytes; want one: deadline in seal, and none", o, len(f.peer.receipt))
	}
	if b, err := os.ReadFile(filepath.Join(f.opened(), result.BootLogName)); err != nil || !strings.Contains(string(b), errStopped.Error()) {
		t.Errorf("the sealed log does not say why: %v\n%s", err, b)
	}
	f.heard("c-1: taken", "c-1: ReceivingAlgorithm/InProgress", "c-1: ReceivingData/InProgress", "c-1: Running/Starting", "c-1: Running/InProgress",
		"c-1: Stopped/Stopped", "c-1: stopped")
}

// TestAStubbornWorkloadIsStopped before anything is wiped, and so before the host hears how the run ended.
func TestAStubbornWorkloadIsStopped(t *testing.T) {
	doc := smallManifest(t)
	synctest.Test(t, func(t *testing.T) {
		m, peer, _ := bareMachine()
		ended, wiped := false, false
		m.discard = func(...string) error { wiped = ended; return nil }
		boot(t.Context(), m, []step{
			{"manifest", result.BadManifest, time.Minute, func(r *run, _ context.Context) error { r.doc = doc; return nil }},
			{"execute", result.Workload, time.Hour, func(r *run, ctx context.Context) error {
				r.stop(errStopped)
				<-ctx.Done()
				time.Sleep(defaultGrace) // as a workload that knows no SIGTERM
				ended = true
				return nil
			}},
			{"seal", result.Internal, time.Minute, func(*run, context.Context) error { t.Error("it began to seal"); return nil }},
		})
		if o := peer.outcomes(); len(o) != 1 || o[0].Step != "seal" || o[0].Reason != result.Deadline || !wiped {
			t.Errorf("outcomes %+v, and what was wiped was the workload's no more: %v", o, wiped)
		}
	})
}

// TestTheServerDies when it has sent the computation: the run goes on to its end.
func TestTheServerDies(t *testing.T) {
	f := newServed(t)
	f.tamper = func(m *machine) {
		resolve := m.resolve
		m.resolve = func(ctx context.Context, uri string, o image.Options) (*image.Image, error) {
			f.server.Close()
			return resolve(ctx, uri, o)
		}
	}
	f.boot()
	f.ends("", result.OK, true)
	f.verdict()
}
