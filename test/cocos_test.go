package test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/cvms/cvmstest"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/mkimage"
)

var withCocos builtImage

// TestComputationServer: a VM takes its computation from a server of Cocos on the network, bound by what the owner computed before, tells
// the server its states, and seals the result to the computation's consumer.
func TestComputationServer(t *testing.T) {
	r := newTrial(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err1 := x509.MarshalPKCS8PrivateKey(key)
	public, err2 := x509.MarshalPKIXPublicKey(key.Public())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	job := cvmstest.Job{
		ID: "c-1", Algorithm: r.job.Algorithm, AlgorithmKey: demo.AlgorithmKey, Dataset: r.job.Dataset, DatasetKey: demo.DatasetKey, Filename: "numbers.csv",
		Broker: r.world.Broker, Arg: "copy=numbers.csv", Consumer: public,
	}
	said := make(chan []string, 1)
	server := cvmstest.Serve(t, func(s *cvmstest.Stream) error {
		s.Request(job.Request(), 1<<20)
		said <- s.HearAll()
		return nil
	})
	_, port, err := net.SplitHostPort(server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	dir, info := withCocos.get(t, mkimage.Options{Profile: cmdline.Simulation, Net: "dhcp", With: []string{mkimage.Cocos}})
	o, err := cmdline.Parse(info.Cmdline)
	if err != nil {
		t.Fatal(err)
	}
	if o.Manifest, err = cmdline.ParseSource("cvms:10.0.2.2:" + port); err != nil { // the port is known only now
		t.Fatal(err)
	}
	r.cfg.Initrd, r.cfg.Cmdline = filepath.Join(dir, mkimage.InitramfsFile), mkimage.Cmdline(o.Profile, o, "")
	r.accepted, r.manifest = r.cfg.Cmdline, job.Manifest()
	r.run()
	r.ends("", result.OK, 0)
	want := []string{"report of 0", "c-1: taken", "c-1: ReceivingAlgorithm/InProgress", "c-1: ReceivingData/InProgress", "c-1: Running/Starting", "c-1: Running/InProgress",
		"c-1: Running/Completed", "c-1: ConsumingResults/Ready", "c-1: Complete/Completed"}
	server.Close()
	select {
	case got := <-said:
		if !slices.Equal(got, want) {
			t.Errorf("the server heard %q, want %q", got, want)
		}
	default:
		t.Error("the server was not asked")
	}
	if p := r.verified().Statement.Predicate; p.Binding != result.BindLaunch || p.ComputationID != job.ID {
		t.Errorf("the receipt says %q bound by %q", p.ComputationID, p.Binding)
	}
	id, err := result.ParseIdentities(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(r.report.ResultPath)
	if err != nil {
		t.Fatal(err)
	}
	clear, err := result.Open(bytes.NewReader(sealed), id)
	if err != nil {
		t.Fatal(err)
	}
	defer clear.Close()
	opened := t.TempDir()
	if err := result.ExtractTar(clear, opened, 1<<30); err != nil {
		t.Fatal(err)
	}
	if got := r.read(filepath.Join(opened, "results/numbers.csv")); got != "1\n2\n3\n" {
		t.Errorf("the result is %q", got)
	}
}
