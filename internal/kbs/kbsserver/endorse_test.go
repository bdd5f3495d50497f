package kbsserver_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// bareGuest is one whose host gives it no certificate.
type bareGuest struct{ *guest }

func (g bareGuest) Evidence(ctx context.Context, data [64]byte) (evidence.Evidence, error) {
	ev, err := g.guest.Evidence(ctx, data)
	ev.Aux = nil
	return ev, err
}

// TestCertificatesOfTheBroker: a report without a certificate is judged with one that the broker has, and by no other.
func TestCertificatesOfTheBroker(t *testing.T) {
	signer, err := testSigner()
	if err != nil {
		t.Fatal(err)
	}
	own := new(verify.CertStore)
	if err := own.Add(signer.Vcek.Raw); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		certs *verify.CertStore
		want  string // "": the key comes
	}{
		"none":     {nil, "no VCEK certificate in the evidence"},
		"no match": {new(verify.CertStore), "none of the 0 given"},
		"its own":  {own, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(conf *kbsserver.Config) { conf.VCEKs = c.certs })
			url := r.listen(t)
			g, err := kbs.Exchange(t.Context(), []kbs.Broker{{URL: url, AllowHTTP: true}}, bareGuest{r.guest}, initdata, []kbs.Want{{Broker: url, Path: algoKey}})
			if c.want == "" {
				if err != nil || g.Key(url, algoKey) == nil {
					t.Fatal(err)
				}
				return
			}
			if d, ok := errors.AsType[*kbs.DeniedError](err); !ok || d.Variant != "AttestationError" || !strings.Contains(r.log.String(), c.want) {
				t.Errorf("%v; the broker says\n%s", err, r.log)
			}
		})
	}
}

// quoteGuest is a simulated TDX guest.
type quoteGuest struct{ chip *psp.PSP }

func (quoteGuest) Kind() evidence.Kind { return evidence.TDX }

func (g quoteGuest) Evidence(_ context.Context, data [64]byte) (evidence.Evidence, error) {
	q, err := g.chip.Quote(psp.Launch{Measurement: measurement, HostData: sha256.Sum256(initdata)}, data)
	return evidence.Evidence{Kind: evidence.TDX, Report: q}, err
}

// TestCollateralOfTheBroker: where Intel's word is asked for and cannot be had, a TDX guest is refused and others are not.
func TestCollateralOfTheBroker(t *testing.T) {
	asked := 0
	gone := func() (*verify.Collateral, error) {
		asked++
		return nil, errors.New("collateral: the folder is empty")
	}
	r := newRig(t, func(c *kbsserver.Config) { c.Collateral = gone })
	url := r.listen(t)
	want := []kbs.Want{{Broker: url, Path: algoKey}}
	if _, err := kbs.Exchange(t.Context(), []kbs.Broker{{URL: url, AllowHTTP: true}}, r.guest, initdata, want); err != nil || asked != 0 {
		t.Errorf("SNP: asked %d times, %v", asked, err)
	}
	for name, collateral := range map[string]func() (*verify.Collateral, error){
		"the folder is empty": gone,
		"issuers":             func() (*verify.Collateral, error) { return new(verify.Collateral), nil },
	} {
		r := newTDX(t, func(c *kbsserver.Config) { c.Collateral = collateral })
		url := r.listen(t)
		_, err := kbs.Exchange(t.Context(), []kbs.Broker{{URL: url, AllowHTTP: true}}, quoteGuest{r.chip}, initdata, []kbs.Want{{Broker: url, Path: algoKey}})
		if d, ok := errors.AsType[*kbs.DeniedError](err); !ok || d.Variant != "AttestationError" || !strings.Contains(r.log.String(), name) {
			t.Errorf("%s: %v; the broker says\n%s", name, err, r.log)
		}
	}
}
