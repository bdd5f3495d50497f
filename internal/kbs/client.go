package kbs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

// A Client holds one session for each broker: key pair, cookie, token, and the version that the broker speaks. It may be
// used from several goroutines; each session does one thing at a time. Close it.
type Client struct {
	sessions map[string]*session
}

// New makes a client and sends nothing. initdata is the initdata document that the launch is bound to, or nil.
func New(brokers []Broker, dev tee.Device, initdata []byte) (*Client, error) {
	if !utf8.Valid(initdata) {
		return nil, errors.New("initdata: not UTF-8, so that JSON cannot carry it unchanged")
	}
	c := &Client{sessions: map[string]*session{}}
	dev = &oneAtATime{dev, newLock()}
	for _, b := range brokers {
		if c.sessions[b.URL] != nil {
			return nil, fmt.Errorf("broker %s: listed twice", b.URL)
		}
		if _, ok := keyTypes[b.KeyType]; !ok {
			return nil, fmt.Errorf("broker %s: key type %.40q: want one of %q", b.URL, b.KeyType, slices.Sorted(maps.Keys(keyTypes))[1:])
		}
		t, err := newTransport(b)
		if err != nil {
			return nil, fmt.Errorf("broker %s: %w", b.URL, err)
		}
		c.sessions[b.URL] = &session{http: t, dev: dev, initdata: initdata, keyType: b.KeyType, gen: &generations[0],
			encode: encode, busy: newLock()}
	}
	return c, nil
}

// Fetch gets every resource of wants, from all brokers that it names at once. A broker that has not attested this client
// yet, or has forgotten it, does so first. All or nothing: an error leaves no resource behind. A refusal is a
// *DeniedError, any other failure of a broker a *BrokerError; that of a broker that does not answer in time wraps
// context.DeadlineExceeded.
func (c *Client) Fetch(ctx context.Context, wants []Want) (*Grant, error) {
	paths := map[string][]string{}
	for _, w := range wants {
		switch {
		case c.sessions[w.Broker] == nil:
			return nil, fmt.Errorf("resource %q: broker %q is not among the %d of the manifest", w.Path, w.Broker, len(c.sessions))
		case len(w.Path) > 512 || !resourcePath.MatchString(w.Path):
			return nil, fmt.Errorf("resource %.600q: want repository/type/tag", w.Path)
		case !slices.Contains(paths[w.Broker], w.Path):
			paths[w.Broker] = append(paths[w.Broker], w.Path)
		}
	}
	g := &Grant{keys: map[Want][]byte{}}
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
			return c.sessions[url].fetch(ctx, paths[url], func(path string, key []byte) { g.put(Want{url, path}, key) })
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

// Token gives the token of one broker, and the key pair that it is bound to: PKCS #8 for an EC key, PKCS #1 for an RSA
// key, PEM (§5.1). A token that calls itself expired is renewed by a new handshake. Both are secret, and the caller's.
func (c *Client) Token(ctx context.Context, broker string) (token string, keyPEM []byte, err error) {
	s := c.sessions[broker]
	if s == nil {
		return "", nil, fmt.Errorf("token: broker %q is not among the %d of the manifest", broker, len(c.sessions))
	}
	return s.giveToken(ctx, time.Now())
}

// Close overwrites the keys of all sessions and ends the connections. It waits for calls under way. What is asked after
// it is an error.
func (c *Client) Close() {
	for _, s := range c.sessions {
		s.close()
	}
}

// Exchange is New, Fetch and Close: for whoever asks once.
func Exchange(ctx context.Context, brokers []Broker, dev tee.Device, initdata []byte, wants []Want) (*Grant, error) {
	c, err := New(brokers, dev, initdata)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Fetch(ctx, wants)
}

// A lock is a mutex that one can stop waiting for.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) take(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l lock) release() { <-l }

// oneAtATime serialises a device: nothing promises that hardware answers two questions at once.
type oneAtATime struct {
	tee.Device
	busy lock
}

func (d *oneAtATime) Evidence(ctx context.Context, data [64]byte) (evidence.Evidence, error) {
	if err := d.busy.take(ctx); err != nil {
		return evidence.Evidence{}, err
	}
	defer d.busy.release()
	return d.Device.Evidence(ctx, data)
}
