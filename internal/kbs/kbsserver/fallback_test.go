package kbsserver_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
)

// The guest's own client begins with the newest protocol and every broker brings it down to its own, whatever the
// session key that the manifest asks for.
func TestTheClientFallsBack(t *testing.T) {
	for version, steps := range map[string][]string{
		"0.4.0": {"auth 200", "attest 200", "resource 200"},
		"0.2.0": {"auth 401", "auth 200", "attest 200", "resource 200"},
		"0.1.1": {"auth 401", "auth 200", "attest 200", "resource 200"},
		"0.1.0": {"auth 400", "auth 401", "auth 200", "attest 200", "resource 200"},
	} {
		for _, keyType := range []string{"", "ECDH-ES+A256KW-P521", "RSA-OAEP-256"} {
			t.Run(version+" "+keyType, func(t *testing.T) {
				r := newRig(t, func(c *kbsserver.Config) { c.Protocol = version })
				var mu sync.Mutex
				var seen []string
				ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					b, _ := io.ReadAll(req.Body)
					req.Body = io.NopCloser(bytes.NewReader(b))
					rec := httptest.NewRecorder()
					r.server.ServeHTTP(rec, req)
					for k, v := range rec.Header() {
						w.Header()[k] = v
					}
					w.WriteHeader(rec.Code)
					w.Write(rec.Body.Bytes())
					mu.Lock()
					defer mu.Unlock()
					step, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/kbs/v0/"), "/")
					seen = append(seen, step+" "+http.StatusText(rec.Code))
				}))
				defer ts.Close()
				brokers := []kbs.Broker{{URL: ts.URL, AllowHTTP: true, KeyType: keyType}}
				// P-521 came with 0.4.0, and a key type is never changed behind the owner's back.
				if version == "0.2.0" && keyType == "ECDH-ES+A256KW-P521" {
					_, err := kbs.Exchange(t.Context(), brokers, r.guest, initdata, []kbs.Want{{Broker: ts.URL, Path: algoKey}})
					if err == nil || !strings.Contains(err.Error(), keyType) {
						t.Errorf("error %v", err)
					}
					return
				}
				g, err := kbs.Exchange(t.Context(), brokers, r.guest, initdata, []kbs.Want{{Broker: ts.URL, Path: algoKey}})
				if err != nil {
					t.Fatalf("%v\n%s", err, r.log)
				}
				if !bytes.Equal(g.Key(ts.URL, algoKey), bytes.Repeat([]byte{7}, 32)) {
					t.Error("another key")
				}
				var want []string
				for _, s := range steps {
					want = append(want, strings.NewReplacer("200", "OK", "401", "Unauthorized", "400", "Bad Request").Replace(s))
				}
				if diff := cmp.Diff(want, seen); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}
