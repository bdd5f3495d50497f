package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

func TestFloorClockOnlyGoesForward(t *testing.T) {
	build := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name string
		now  time.Time
		sets bool
	}{
		{"earlier than the image", build.Add(-time.Second), true},
		{"the epoch", time.Unix(0, 0), true},
		{"the same moment", build, false},
		{"later", build.Add(time.Hour), false},
	} {
		var set []time.Time
		err := floorClock(tc.now, build, func(to time.Time) error {
			set = append(set, to)
			return nil
		})
		if err != nil || (len(set) == 1 && set[0].Equal(build)) != tc.sets || len(set) > 1 {
			t.Errorf("%s: set to %v, %v", tc.name, set, err)
		}
	}
	refused := errors.New("not permitted")
	err := floorClock(time.Unix(0, 0), build, func(time.Time) error { return refused })
	if !errors.Is(err, refused) || !strings.Contains(err.Error(), "2026-11-23T00:00:00Z") {
		t.Errorf("error %v", err)
	}
}

func TestUptimeGoesForward(t *testing.T) {
	a := Uptime()
	if b := Uptime(); a <= 0 || b < a {
		t.Errorf("uptime %v then %v", a, b)
	}
}

func TestClearEnv(t *testing.T) {
	before := os.Environ()
	t.Cleanup(func() {
		debug.SetTraceback("single")
		for _, kv := range before {
			k, v, _ := strings.Cut(kv, "=")
			os.Setenv(k, v)
		}
	})
	os.Setenv("LD_PRELOAD", "/evil.so")
	ClearEnv()
	if env := os.Environ(); len(env) != 0 {
		t.Errorf("environment %q", env)
	}
}

func TestVsockClient(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "http://host/v1/manifest", http.StatusFound)
		case "/wordy":
			w.Header().Set("X", strings.Repeat("a", 65<<10))
		default:
			if r.ProtoMajor != 1 || r.Header.Get("Accept-Encoding") != "" {
				t.Errorf("%s with headers %v", r.Proto, r.Header)
			}
			io.WriteString(w, "doc")
		}
	}))
	defer s.Close()
	c := HostClient(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
	})
	for _, tc := range []struct{ url, err string }{
		{"http://host/v1/manifest", ""},
		{"http://host/moved", "redirect refused"},
		{"http://host/wordy", "header"},
		{"https://host/v1/manifest", "https over vsock"},
		{"http://host:8080/", "not behind the vsock"},
		{"http://169.254.169.254/", "not behind the vsock"},
	} {
		resp, err := c.Get(tc.url)
		if err == nil {
			resp.Body.Close()
		}
		if (tc.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("GET %s: error %v, want %q", tc.url, err, tc.err)
		}
	}
}
