// Package keyprovider wraps and opens the keys of image layers for tools that encrypt images: skopeo, buildah, containerd.
//
// They speak ocicrypt's key provider protocol (wire/SPEC.md §4.2) with the parameters of CoCo's key provider (§4.3). Keys
// are files: DIR/REPO/TYPE/TAG, 32 raw bytes, as ampoule encrypt makes them and ampoule kbs serves them.
package keyprovider

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/ampoule-vm/ampoule/image"
)

// Name is what encryption keys are given under: provider:attestation-agent:PARAMETERS.
const Name = "attestation-agent"

// maxRequest bounds a request, bytes.
const maxRequest = 1 << 20

// A Provider answers from the keys in a folder. Missing ones are made where one is asked to wrap, and only there.
type Provider struct {
	// Dir is the folder. Without one, keys are those of files that the parameter keypath names, or made for one layer each
	// under an id of its own; nothing can be opened again here.
	Dir string
	// Post, unless nil, gives a key that has wrapped something to a broker, where path says (repo/type/tag). It must not
	// keep key.
	Post func(ctx context.Context, path string, key []byte) error

	mu     sync.Mutex
	posted map[string][sha256.Size]byte // by path: an image has many layers, mostly under one key
}

type (
	request struct {
		Op     string       `json:"op"`
		Wrap   wrapParams   `json:"keywrapparams"`
		Unwrap unwrapParams `json:"keyunwrapparams"`
	}
	wrapParams struct {
		Config *struct {
			Parameters map[string][][]byte
		} `json:"ec"`
		Data []byte `json:"optsdata"`
	}
	unwrapParams struct {
		Packet []byte `json:"annotation"`
	}
	answer struct {
		Wrap   *wrapResults   `json:"keywrapresults,omitempty"`
		Unwrap *unwrapResults `json:"keyunwrapresults,omitempty"`
	}
	wrapResults struct {
		Packet []byte `json:"annotation"`
	}
	unwrapResults struct {
		Data []byte `json:"optsdata"`
	}
)

// Wrap answers a request of operation keywrap, JSON of at most 1 MiB.
func (p *Provider) Wrap(ctx context.Context, body []byte) ([]byte, error) {
	r, err := parse(body, "keywrap")
	if err != nil {
		return nil, err
	}
	if r.Wrap.Config == nil || len(r.Wrap.Config.Parameters[Name]) != 1 || len(r.Wrap.Data) == 0 {
		return nil, fmt.Errorf("keywrap: want one parameter for %s, and data", Name)
	}
	param, err := parseParameter(string(r.Wrap.Config.Parameters[Name][0]))
	if err != nil {
		return nil, err
	}
	kek, err := p.key(param)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	packet, err := image.WrapKey(r.Wrap.Data, kek, "kbs:///"+param.path, image.EncryptOptions{})
	if err != nil {
		return nil, err
	}
	if err := p.post(ctx, param.path, kek); err != nil {
		return nil, fmt.Errorf("key %s: %w", param.path, err)
	}
	return json.Marshal(answer{Wrap: &wrapResults{packet}})
}

func (p *Provider) post(ctx context.Context, path string, key []byte) error {
	if p.Post == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := sha256.Sum256(key)
	if was, ok := p.posted[path]; ok && was == sum {
		return nil
	}
	if err := p.Post(ctx, path, key); err != nil {
		return err
	}
	if p.posted == nil {
		p.posted = map[string][sha256.Size]byte{}
	}
	p.posted[path] = sum
	return nil
}

// Answer answers a request by the operation that it names, as a provider that is run as a command must.
func (p *Provider) Answer(ctx context.Context, body []byte) ([]byte, error) {
	var r struct {
		Op string `json:"op"`
	}
	if len(body) <= maxRequest && json.Unmarshal(body, &r) == nil && r.Op == "keyunwrap" {
		return p.Unwrap(body)
	}
	return p.Wrap(ctx, body)
}

// Unwrap answers a request of operation keyunwrap, JSON of at most 1 MiB.
func (p *Provider) Unwrap(body []byte) ([]byte, error) {
	if p.Dir == "" {
		return nil, errors.New("keyunwrap: there is no folder of keys here, and a broker gives its keys to machines that attest, of which this is none; say --keys")
	}
	r, err := parse(body, "keyunwrap")
	if err != nil {
		return nil, err
	}
	data, err := image.UnwrapKey(r.Unwrap.Packet, p.read)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return json.Marshal(answer{Unwrap: &unwrapResults{data}})
}

func parse(body []byte, op string) (*request, error) {
	if len(body) > maxRequest {
		return nil, fmt.Errorf("%s: request of %d bytes, at most %d", op, len(body), maxRequest)
	}
	r := new(request)
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("%s: request: %w", op, err)
	}
	if r.Op != op {
		return nil, fmt.Errorf("%s: the request's operation is %.40q", op, r.Op)
	}
	return r, nil
}

// A parameter is what a user says behind provider:attestation-agent: (§4.3).
type parameter struct {
	path  string // repo/type/tag of the key at the broker
	named bool   // by the user
	file  string // of the key; "" for the one in the folder
}

// parseParameter reads k=v joined by "::". The key's id may be left out, and is then made up.
func parseParameter(text string) (p parameter, err error) {
	given := map[string]string{}
	if text != "" {
		for kv := range strings.SplitSeq(text, "::") {
			k, v, ok := strings.Cut(kv, "=")
			if _, twice := given[k]; !ok || twice {
				return p, fmt.Errorf("parameter %.200q: want keyid=kbs:///repo/type/tag and such, each once, with :: between them", text)
			}
			given[k] = v
		}
	}
	for k, v := range given {
		switch k {
		case "keyid":
			p.path, err = image.KeyPath(v)
		case "keypath":
			p.file = v
		case "algorithm":
			if v != "A256GCM" {
				err = fmt.Errorf("parameter algorithm=%.40s: only A256GCM, which authenticates what it wraps", v)
			}
		case "sample":
			if v != "false" {
				err = fmt.Errorf("parameter sample=%.40s: %w; anybody could read the image", v, image.ErrSampleKey)
			}
		default:
			err = fmt.Errorf("parameter %.40q: unknown; keyid, keypath, algorithm and sample are known", k)
		}
		if err != nil {
			return p, err
		}
	}
	if p.named = p.path != ""; !p.named {
		p.path = "default/image-kek/" + uuid.NewString()
	}
	return p, nil
}

// key gives the key to wrap with. That of a file goes into the folder as well, where unwrapping and the broker look for it.
func (p *Provider) key(param parameter) ([]byte, error) {
	switch {
	case p.Dir == "" && param.file != "":
		return readKey(param.file)
	case p.Dir == "" && param.named:
		// A key made now would take the place of the one that the broker may have there, and close what that opens.
		return nil, fmt.Errorf("key %s: there is no folder to have it, and no keypath says where it is; name a file, or say --keys", param.path)
	case p.Dir == "":
		return image.NewKey(), nil
	case param.file == "":
		key, err := p.read(param.path)
		if !errors.Is(err, fs.ErrNotExist) {
			return key, err
		}
		key = image.NewKey()
		return key, p.store(param.path, key)
	}
	key, err := readKey(param.file)
	if err != nil {
		return nil, err
	}
	kept, err := p.read(param.path)
	defer clear(kept)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = p.store(param.path, key)
	case err == nil && string(kept) != string(key):
		err = fmt.Errorf("key %s: the folder has another one than %s", param.path, param.file)
	}
	if err != nil {
		clear(key)
		return nil, err
	}
	return key, nil
}

func (p *Provider) file(path string) string { return filepath.Join(p.Dir, filepath.FromSlash(path)) }

// read gives the key of a path that image.KeyPath has let pass, so that it has no dots to climb with.
func (p *Provider) read(path string) ([]byte, error) { return readKey(p.file(path)) }

func readKey(file string) ([]byte, error) {
	i, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !i.Mode().IsRegular() || i.Size() != 32 {
		return nil, fmt.Errorf("%s: holds %d bytes and a key is 32 raw bytes", file, i.Size())
	}
	return os.ReadFile(file)
}

func (p *Provider) store(path string, key []byte) error {
	file := p.file(path)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(key)
	return errors.Join(err, f.Sync(), f.Close())
}
