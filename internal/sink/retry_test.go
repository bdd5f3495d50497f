package sink

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
)

func TestRetry(t *testing.T) {
	busy := func(after time.Duration) error {
		return &statusError{what: "PUT https://h/x", status: 503, after: after}
	}
	for name, c := range map[string]struct {
		errs   []error // of the tries; then it goes well
		tries  int
		atOnce bool
		least  time.Duration
		most   time.Duration
		want   string
	}{
		"it goes well":                         {nil, 1, true, 0, 0, ""},
		"busy, twice":                          {[]error{busy(0), busy(0)}, 3, false, 0, 2 * time.Second, ""},
		"it is asked to wait":                  {[]error{busy(20 * time.Second)}, 2, false, 20 * time.Second, 21 * time.Second, ""},
		"a refusal stays":                      {[]error{&statusError{what: "PUT https://h/x", status: 403, code: "AccessDenied"}}, 1, true, 0, 0, "PUT https://h/x: status 403, AccessDenied"},
		"the connection breaks":                {[]error{io.ErrUnexpectedEOF, errStalled}, 3, false, 0, 2 * time.Second, ""},
		"an error of another kind":             {[]error{errors.New("x509: no")}, 1, true, 0, 0, "x509"},
		"asked to wait for longer than it has": {[]error{busy(59 * time.Second), busy(59 * time.Second)}, 2, false, 59 * time.Second, 60 * time.Second, "after the sink's deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				begin, n := time.Now(), 0
				err := Retry(ctx, func(context.Context) error {
					if n++; n <= len(c.errs) {
						return c.errs[n-1]
					}
					return nil
				})
				took := time.Since(begin)
				if n != c.tries || c.atOnce && took != 0 || took < c.least || took > max(c.most, c.least) {
					t.Errorf("%d tries in %v", n, took)
				}
				if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("%v, want %q", err, c.want)
				}
			})
		})
	}
}

func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		err := Retry(ctx, func(ctx context.Context) error { return &statusError{what: "PUT https://h/x", status: 500} })
		if took := time.Since(begin); took > time.Minute || !strings.Contains(err.Error(), "status 500") {
			t.Errorf("%v after %v", err, took)
		}
		stop, end := context.WithCancelCause(t.Context())
		end(errors.New("the boot is over"))
		if err := Retry(stop, func(ctx context.Context) error { return io.ErrUnexpectedEOF }); !strings.Contains(err.Error(), "the boot is over") {
			t.Error(err)
		}
	})
}

type peer struct {
	errs []error
	got  [][]byte
}

func (p *peer) PutResult(_ context.Context, r io.Reader, size int64) error {
	b, _ := io.ReadAll(r)
	p.got = append(p.got, b)
	if len(p.got) <= len(p.errs) {
		return p.errs[len(p.got)-1]
	}
	return nil
}

func (p *peer) PutReceipt(context.Context, []byte) error { return io.ErrUnexpectedEOF }

func TestHostIsTriedThreeTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := Result{bytes.NewReader([]byte("result")), result.SealedName, 6, [32]byte{}}
		p := &peer{errs: []error{io.ErrUnexpectedEOF, &statusError{status: http.StatusServiceUnavailable}}}
		if err := (Host{p}).PutResult(t.Context(), r); err != nil || len(p.got) != 3 || string(p.got[2]) != "result" {
			t.Errorf("%q, %v", p.got, err)
		}
		if err := (Host{p}).PutReceipt(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "(3 tries)") {
			t.Error(err)
		}
	})
}
