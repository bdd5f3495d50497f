// Package kbs fetches keys from key brokers by remote attestation, as CoCo's RCAR protocol 0.4.0 has it.
//
// The broker is reached over a network that belongs to the host. What protects a key is not the connection but the
// JWE around it, which only the key pair inside the attested guest opens; TLS pinning adds that a stranger cannot
// play the broker. Section numbers refer to wire/SPEC.md.
package kbs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"runtime/debug"
	"slices"
	"sync"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

// A Broker is a key broker and what it is recognised by.
type Broker struct {
	URL       string // https://host[:port][/prefix]; http:// only with AllowHTTP
	CA        []byte // PEM; the broker's chain must end in one of these. Empty: the system's roots, if SPKI is empty too
	SPKI      []byte // SHA-256 of the SubjectPublicKeyInfo of the broker's own certificate; empty: not pinned
	AllowHTTP bool
}

// A Want names one resource of one broker.
type Want struct {
	Broker string // a Broker's URL, as written there
	Path   string // repo/type/tag
}

// maxResource bounds a resource. A key has 32 bytes; policies and credentials are larger.
const maxResource = 64 << 10

// resourcePath is §1.10: three segments, no leading dot.
var resourcePath = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){2}$`)

// A Grant is what the brokers gave. It is secret.
type Grant struct {
	mu   sync.Mutex
	keys map[Want][]byte
}

const secret = "[secret]"

func (*Grant) String() string               { return secret }
func (*Grant) GoString() string             { return secret }
func (*Grant) LogValue() slog.Value         { return slog.StringValue(secret) }
func (*Grant) MarshalJSON() ([]byte, error) { return []byte(`"` + secret + `"`), nil }

// Key returns the bytes of one resource, as the broker has them, or nil if it was not asked for. They are the
// grant's own: valid until Zero, not to be changed.
func (g *Grant) Key(broker, path string) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.keys[Want{broker, path}]
}

// Zero overwrites and forgets every resource. Copies that the Go runtime or a library made on the way (a moved stack,
// a buffer inside the JWE library) are out of its reach; nothing else runs in PID 1, and the machine is powered off.
func (g *Grant) Zero() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range g.keys {
		clear(k)
	}
	clear(g.keys)
}

func (g *Grant) put(w Want, key []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keys[w] = key
}

// Exchange attests to each broker that wants name, one session and one fresh key pair each, all brokers at once, and
// fetches what is wanted. initdata is the initdata document that the launch is bound to, or nil. All or nothing: an
// error leaves no key behind. A refusal is a *DeniedError; a broker that does not answer before ctx ends gives an
// error that wraps context.DeadlineExceeded.
func Exchange(ctx context.Context, brokers []Broker, dev tee.Device, initdata []byte, wants []Want) (*Grant, error) {
	if !utf8.Valid(initdata) {
		return nil, errors.New("initdata: not UTF-8, so that JSON cannot carry it unchanged")
	}
	clients := map[string]*client{}
	for _, b := range brokers {
		if clients[b.URL] != nil {
			return nil, fmt.Errorf("broker %s: listed twice", b.URL)
		}
		c, err := newClient(b)
		if err != nil {
			return nil, fmt.Errorf("broker %s: %w", b.URL, err)
		}
		defer c.close()
		clients[b.URL] = c
	}
	paths := map[string][]string{}
	for _, w := range wants {
		switch {
		case clients[w.Broker] == nil:
			return nil, fmt.Errorf("resource %q: broker %q is not among the %d of the manifest", w.Path, w.Broker, len(brokers))
		case len(w.Path) > 512 || !resourcePath.MatchString(w.Path):
			return nil, fmt.Errorf("resource %.600q: want repository/type/tag", w.Path)
		case !slices.Contains(paths[w.Broker], w.Path):
			paths[w.Broker] = append(paths[w.Broker], w.Path)
		}
	}
	g := &Grant{keys: map[Want][]byte{}}
	dev = &oneAtATime{Device: dev}
	group, ctx := errgroup.WithContext(ctx)
	died := make(chan any, len(paths))
	for _, url := range slices.Sorted(maps.Keys(paths)) {
		group.Go(func() (err error) {
			defer func() {
				if p := recover(); p != nil {
					died <- fmt.Sprintf("%v\n%s", p, debug.Stack())
					err = errDied
				}
			}()
			s := session{client: clients[url], dev: dev, initdata: initdata}
			return s.fetch(ctx, paths[url], func(path string, key []byte) { g.put(Want{url, path}, key) })
		})
	}
	if err := group.Wait(); err != nil {
		g.Zero()
		if len(died) > 0 {
			panic(<-died) // where the caller can recover it: out of a goroutine of ours it would end the program
		}
		return nil, err
	}
	return g, nil
}

var errDied = errors.New("a session panicked")

// oneAtATime serialises a device: nothing promises that hardware answers two questions at once.
type oneAtATime struct {
	tee.Device
	mu sync.Mutex
}

func (d *oneAtATime) Evidence(ctx context.Context, data [64]byte) (evidence.Evidence, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Device.Evidence(ctx, data)
}
