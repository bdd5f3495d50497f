package verify

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// TestFetchCollateral: what a double of Intel's service gives is judged as if it came from a folder.
func TestFetchCollateral(t *testing.T) {
	ev := evidence.Evidence{Kind: evidence.TDX, Report: fixture(t, "tdx/go-tdx-guest-tdx_prod_quote_SPR_E4.dat")}
	recorded := recordedCollateral(t)
	var asked []string
	broken := ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String())
		switch r.URL.Path {
		case broken:
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "/tdx/certification/v4/tcb":
			w.Header().Set("TCB-Info-Issuer-Chain", string(recorded.Issuers))
			w.Write(recorded.TCBInfo)
		case "/tdx/certification/v4/qe/identity":
			w.Write(recorded.QEIdentity)
		case "/sgx/certification/v4/pckcrl":
			w.Write(recorded.PCKCRL)
		case "/root.der":
			w.Write(recorded.RootCRL)
		default:
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	from := PCS{s.URL, s.URL + "/root.der"}
	o := Options{Now: judged}
	var err error
	if o.Collateral, err = FetchCollateral(t.Context(), from, ev.Report, o); err != nil {
		t.Fatal(err)
	}
	want := []string{"/tdx/certification/v4/tcb?fmspc=50806f000000", "/tdx/certification/v4/qe/identity", "/sgx/certification/v4/pckcrl?encoding=der&ca=platform", "/root.der"}
	if strings.Join(asked, " ") != strings.Join(want, " ") {
		t.Errorf("asked %q, want %q", asked, want)
	}
	// The recorded answers are of newer platforms: that is as far as signed answers can get with this quote.
	if _, err := TDX(ev, o); err == nil || !strings.Contains(err.Error(), tooOld) {
		t.Errorf("judged: %v", err)
	}
	for _, broken = range []string{"/tdx/certification/v4/tcb", "/tdx/certification/v4/qe/identity", "/sgx/certification/v4/pckcrl", "/root.der"} {
		if _, err := FetchCollateral(t.Context(), from, ev.Report, o); err == nil || !strings.Contains(err.Error(), "302") {
			t.Errorf("%s redirects: %v", broken, err)
		}
	}
	forged := append([]byte(nil), ev.Report...)
	forged[600] ^= 1
	asked = nil
	if _, err := FetchCollateral(t.Context(), from, forged, o); err == nil || len(asked) > 0 {
		t.Errorf("a forged quote: asked %q, %v", asked, err)
	}
}
