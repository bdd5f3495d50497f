// Package manifest reads the document that says what a machine is to run: three spellings, one type.
//
// The manifest comes from the host and is bound to the launch by its exact bytes, so it is kept as it came, read
// strictly (no duplicate, unknown or re-cased keys, nothing after the end, at most 1 MiB), and judged as a whole: all
// problems are reported at once, each with its path. docs/MANIFEST.md is the reference. Nothing of ours is imported.
package manifest

import (
	"bytes"
	"crypto/sha512"
	"strings"
	"time"
)

// MaxSize is the size in bytes beyond which a manifest is refused.
const MaxSize = 1 << 20

// The spellings, as Manifest.Spelling names them.
const (
	Own         = "ampoule"           // "version": 1
	Remote      = "cocos-remote"      // Cocos' remote resources: "computation_id", no "version"
	Computation = "cocos-computation" // Cocos' agent.Computation: "id", neither of the others
)

// What is used where a manifest says nothing.
const (
	ResultsPath    = "/cocos/results"
	DefaultLimit   = 256 << 20 // bytes of results
	defaultNetwork = "none"
	defaultKind    = "oci"
	defaultSink    = VsockSink
	defaultLogs    = "sealed"
)

// KeyTypes are the kinds of keys that a broker can seal to, as Broker.KeyType names them.
var KeyTypes = []string{"ECDH-ES+A256KW-P256", "ECDH-ES+A256KW-P521", "RSA-OAEP-256"}

// The permissions that relax Parse; package cmdline has the same names.
const (
	allowTag  = "tag"
	allowHTTP = "http"
)

// Manifest is what a machine is to do. Only Parse makes one; all of it has been checked.
type Manifest struct {
	Spelling      string
	ComputationID string // may be empty in Ampoule's own spelling
	Algorithm     Resource
	Datasets      []Resource
	Runtime       *Resource // the image with the interpreter; nil: the algorithm's
	Workload      Workload
	Egress        []Egress // where the workload may connect to; none: loopback only
	Resources     Resources
	Results       Results
	GuestAPI      GuestAPI
	ImagePolicy   *BrokerResource // a containers-policy.json that every image must satisfy; nil: not at a broker
	InlinePolicy  *InlinePolicy   // the same in the manifest itself; with neither, digests alone count
	Brokers       []Broker        // every one that a resource names, and those that only "kbs" lists
	Registries    []Registry      // what is said of some registries and web servers; others may be used as well
	Lookaside     []Lookaside     // where simple signatures are kept
	Stores        []Store         // what is said of some stores of files; others may be used as well
	Logs          string          // "sealed" or "host": where the workload's output goes

	raw []byte
}

// Resource is one image, the algorithm or a dataset, or a dataset's file.
type Resource struct {
	Type      string // "oci-image", or of a file: "s3", "gcs", "https", "http"
	URI       string // docker://host[:port]/repository[:tag][@sha256:…], s3://bucket/key, gs://bucket/name, https://…, as written
	Encrypted bool   // what is in clear is refused; Broker is set then
	KeyPath   string // repository/type/tag at the broker, also where it is written as kbs:///…; empty (Cocos' spellings only): the image says
	Broker    string // URL of one of Manifest.Brokers; empty unless Encrypted
	Filename  string // of a dataset below /cocos/datasets; empty: as in the image or the archive

	// Of the one regular file in a dataset's image; nil: not given. Parse cannot check them: whoever unpacks the
	// image must, and must fail where there is more than one file. Of a resource that is a file: of that, decrypted and not yet
	// decompressed.
	// Of an algorithm in an image: of the file that is run.
	SHA256, SHA3_256 []byte

	Decompress bool // the file is an archive whose entries are the dataset
}

// Pinned reports whether it is settled what the bytes are: by a digest in an image's URI, by a digest of a file, or by a file's encryption,
// which nobody makes who has not the key.
func (r Resource) Pinned() bool {
	if r.IsFile() {
		return r.Encrypted || r.SHA256 != nil || r.SHA3_256 != nil
	}
	return strings.Contains(r.URI, "@sha256:")
}

// Workload is how the algorithm is run; what is empty comes from the image's config.
type Workload struct {
	Kind string   // "oci": the image's own entrypoint; "bin", "python", "wasm": a file of it; "" (Cocos' spellings only): oci, or bin where there is no entrypoint
	Path string   // of that file in the image; empty: it is looked for
	Args []string // nil: the image's; empty: none
	Env  map[string]string
	User string // user[:group], by name or number
	Cwd  string // absolute

	// Files are laid into the sandbox, for the workload alone to read.
	Files []File

	// SealedBroker is the URL of the broker that opens the sealed values of Env and Files; empty where there are none.
	SealedBroker string
}

// File is one that the workload finds besides the image's and the datasets.
type File struct {
	Path  string // absolute; not below /cocos/datasets, /cocos/results, /dev, /proc or /sys
	Value string // its bytes, or a sealed secret, "sealed.…", which stands for them
}

// BrokerResource names one resource of a key broker.
type BrokerResource struct {
	Broker string // URL of one of Manifest.Brokers
	Path   string // repository/type/tag
}

// GuestAPI is what the workload may ask of the machine at 127.0.0.1:8006, as package guestapi has it. With nothing
// granted there is no such address.
type GuestAPI struct {
	Resources   []BrokerResource // no path twice: the workload names a path and no broker
	Token       bool             // a broker's token, and the key that it is bound to
	TokenBroker string           // URL of one of Manifest.Brokers; empty unless Token
	Evidence    bool             // evidence for values of the workload's choice, under a label of their own
}

// Granted reports whether anything is.
func (g GuestAPI) Granted() bool { return len(g.Resources) > 0 || g.Token || g.Evidence }

// Resources are limits of the workload; 0 leaves them to init.
type Resources struct {
	MemoryBytes, PIDs, DiskBytes int64
	InputBytes                   int64 // of all inputs, unpacked
	CPUs                         int64 // as much time as so many give
	Deadline                     time.Duration
	Grace                        time.Duration // from SIGTERM, at the deadline, to SIGKILL; at most MaxGrace
}

// Results says what becomes of the workload's output.
type Results struct {
	Path       string   // ResultsPath in this build
	LimitBytes int64    // of the files below Path, as package result counts them
	Recipients []string // age1…, ssh-ed25519 …, ssh-rsa …, or a PKIX key in PEM; only their prefixes are checked here
	Sinks      []Sink
}

// Broker is a key broker and what is pinned of it.
type Broker struct {
	URL  string // https://host[:port][/path] or http://…, normalised: lower case, no default port, no slash at the end
	CA   []byte // PEM; empty: not pinned
	SPKI []byte // SHA-256 of its SubjectPublicKeyInfo, 32 bytes; empty: not pinned

	// KeyType is the kind of key that it seals to: one of the KeyTypes; empty: the first of them.
	KeyType string
}

// Registry is what is said of a registry, or of a mirror of one: one of these at least. Its certificates are also those of a web server or a
// store of that host.
type Registry struct {
	Host string // host[:port], as in URIs
	CA   []byte // PEM; empty: not pinned

	Credentials *BrokerResource // a containers-auth.json; nil: none

	Mirrors []string // host[:port][/prefix], to be asked first, in this order, for what has a digest
	Proxy   string   // http://host[:port] or https://host[:port]; empty: none
}

// InlinePolicy is an image policy that stands in the manifest. Package imagepolicy reads it.
type InlinePolicy struct {
	JSON   []byte // its exact bytes
	Broker string // URL of one of Manifest.Brokers, which has the keys that it names; empty: it names none
}

// Lookaside is where the simple signatures of a registry's images are kept, or of those in a part of it.
type Lookaside struct {
	Scope string // host[:port] as in URIs, or with the first parts of the repository
	URL   string // https://host[:port][/path] or http://…, without a slash at the end
}

// Raw is the manifest's exact bytes. They must not be changed.
func (m *Manifest) Raw() []byte { return m.raw }

// SHA384 is the digest of the exact bytes, as ampoule.manifest-sha384= pins it.
func (m *Manifest) SHA384() [48]byte { return sha512.Sum384(m.raw) }

// Parse reads a manifest in any of the three spellings. allow says what the image permits beyond the strict default:
// "tag" references and files without a digest, "http" brokers and files over plain http; nil permits nothing. An error is Problems.
func Parse(b []byte, allow func(string) bool) (*Manifest, error) {
	m, _, err := parse(b, allow)
	return m, err
}

// parse is Parse, and where in b the references are.
func parse(b []byte, allow func(string) bool) (*Manifest, []*node, error) {
	if allow == nil {
		allow = func(string) bool { return false }
	}
	r := &reader{allow: allow, places: map[*Resource]place{}, objects: map[*Resource]fileAt{}}
	root := r.tree(b)
	if len(r.problems) > 0 {
		return nil, nil, r.problems
	}
	m := &Manifest{
		Results: Results{Path: ResultsPath, LimitBytes: DefaultLimit, Sinks: []Sink{{Type: defaultSink, Deadline: sinkDeadline}}},
		Logs:    defaultLogs,
		raw:     bytes.Clone(b),
	}
	o := r.object(root)
	switch {
	case o.has("version"):
		r.own(o, m)
	case o.has("computation_id"):
		r.remote(o, m)
	case o.has("id"):
		r.computation(o, m)
	case len(r.problems) == 0:
		r.problem("", `is in no known spelling; want "version": 1 (Ampoule's), "computation_id" (Cocos' remote resources) or "id" (Cocos' agent.Computation)`)
	}
	if len(r.problems) > 0 {
		return nil, nil, r.problems
	}
	return m, r.references, nil
}
