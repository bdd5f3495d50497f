// Package kbs fetches keys from key brokers by remote attestation: CoCo's RCAR protocol, 0.1.0 to 0.4.0.
//
// The broker is reached over a network that belongs to the host. What protects a key is not the connection but the
// JWE around it, which only the key pair inside the attested guest opens; TLS pinning adds that a stranger cannot
// play the broker. Section numbers refer to wire/SPEC.md.
//
// A session begins with the newest version and falls back once if the broker asks for another that Trustee has had.
// Whoever stands between can ask for that too and gains nothing: a broker takes only its own version, and every version
// binds the guest's key pair into the evidence and wraps keys for it alone.
package kbs

import (
	"log/slog"
	"regexp"
	"sync"
)

// A Broker is a key broker and what it is recognised by.
type Broker struct {
	URL       string // https://host[:port][/prefix]; http:// only with AllowHTTP
	CA        []byte // PEM; the broker's chain must end in one of these. Empty: the system's roots, if SPKI is empty too
	SPKI      []byte // SHA-256 of the SubjectPublicKeyInfo of the broker's own certificate; empty: not pinned
	AllowHTTP bool
	KeyType   string // ECDH-ES+A256KW-P256 (also ""), ECDH-ES+A256KW-P521, RSA-OAEP-256; protocols 0.1.x have RSA1_5 alone
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
