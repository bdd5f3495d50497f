// Package demo is one sealed run on one machine: data owner, algorithm owner, operator and key broker at once.
//
// Nothing in it is kinder than the real thing: the broker verifies evidence and asks its policy, the VM pulls
// encrypted images over a network, the result comes back sealed. Only the secure processor is simulated.
package demo

import (
	"context"
	"crypto/tls"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"filippo.io/age"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

//go:embed linreg.py
var algorithm []byte

//go:embed houses.csv
var dataset []byte

// guestHost is what the VM calls this machine's loopback (QEMU's user network).
const guestHost = "10.0.2.2"

// A World is everything around the VM: a registry and a broker on loopback, keys, and a recipient.
type World struct {
	Dir      string // keys, policy and manifest are kept here
	Registry string // host:port as this machine has it
	Broker   string // URL as the VM has it
	PSP      *psp.PSP
	Identity *age.X25519Identity
	CA       []byte // PEM; nil where both speak plain http

	tls    *tls.Config
	audit  *os.File // the broker's log
	cancel context.CancelFunc
	done   []chan error
}

// NewWorld starts registry and broker on free ports. Close ends them. wrap, if not nil, goes between the registry and
// whoever asks it: a test's hostile network.
func NewWorld(ctx context.Context, dir, pspDir string, wrap func(http.Handler) http.Handler) (*World, error) {
	chip, err := psp.New(pspDir)
	if err != nil {
		return nil, err
	}
	root, err := verify.LoadRoot(chip.RootPEM())
	if err != nil {
		return nil, err
	}
	intel, err := verify.LoadIntelRoot(chip.TDXRootPEM())
	if err != nil {
		return nil, err
	}
	return newWorld(ctx, &World{Dir: dir, PSP: chip}, kbsserver.Config{Roots: []verify.Root{root}, Intel: intel}, wrap)
}

// NewTLSWorld is a World in which both speak TLS, as a production image wants it. conf says whose evidence the broker takes; its Dir and
// Log are not used.
func NewTLSWorld(ctx context.Context, dir string, conf kbsserver.Config) (*World, error) {
	w := &World{Dir: dir}
	var err error
	if w.tls, w.CA, err = selfSigned(); err != nil {
		return nil, err
	}
	return newWorld(ctx, w, conf, nil)
}

func newWorld(ctx context.Context, w *World, conf kbsserver.Config, wrap func(http.Handler) http.Handler) (_ *World, err error) {
	ctx, w.cancel = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if err := os.MkdirAll(filepath.Join(w.kbsDir(), "keys"), 0o700); err != nil {
		return nil, err
	}
	if w.Identity, err = age.GenerateX25519Identity(); err != nil {
		return nil, err
	}
	if w.audit, err = os.OpenFile(filepath.Join(w.Dir, "broker.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644); err != nil {
		return nil, err
	}
	conf.Dir, conf.Log = w.kbsDir(), slog.New(slog.NewTextHandler(w.audit, nil))
	broker, err := kbsserver.New(conf)
	if err != nil {
		return nil, err
	}
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		images = wrap(images)
	}
	port, err := w.serve(ctx, images)
	if err != nil {
		return nil, err
	}
	w.Registry = net.JoinHostPort("127.0.0.1", port)
	if port, err = w.serve(ctx, broker); err != nil {
		return nil, err
	}
	w.Broker = "http://" + net.JoinHostPort(guestHost, port)
	if w.tls != nil {
		w.Broker = "https://" + net.JoinHostPort(guestHost, port)
	}
	return w, nil
}

func (w *World) kbsDir() string { return filepath.Join(w.Dir, "kbs") }

func (w *World) serve(ctx context.Context, h http.Handler) (port string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	port = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	if w.tls != nil {
		l = tls.NewListener(l, w.tls)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan error, 1)
	w.done = append(w.done, done)
	go func() { done <- s.Serve(l) }()
	context.AfterFunc(ctx, func() { s.Close() })
	return port, nil
}

// Close ends registry and broker.
func (w *World) Close() error {
	w.cancel()
	var errs []error
	for _, d := range w.done {
		if err := <-d; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	if w.audit != nil {
		errs = append(errs, w.audit.Close())
	}
	return errors.Join(errs...)
}

// Publish encrypts img under a new key, gives the key to the broker as path (repo/type/tag) and pushes the image. It
// returns the reference that the VM should pull, by digest.
func (w *World) Publish(ctx context.Context, img v1.Image, name, path string) (string, error) {
	key := image.NewKey()
	if err := w.SetKey(path, key); err != nil {
		return "", err
	}
	sealed, err := image.Encrypt(ctx, img, key, "kbs:///"+path, image.EncryptOptions{})
	if err != nil {
		return "", err
	}
	return w.Push(ctx, sealed, name)
}

// Seal encrypts img under the key that the broker has as path.
func (w *World) Seal(ctx context.Context, img v1.Image, path string) (v1.Image, error) {
	key, err := os.ReadFile(filepath.Join(w.kbsDir(), "keys", filepath.FromSlash(path)))
	if err != nil {
		return nil, err
	}
	return image.Encrypt(ctx, img, key, "kbs:///"+path, image.EncryptOptions{})
}

// Push uploads img as it is and returns the reference that the VM should pull, by digest.
func (w *World) Push(ctx context.Context, img v1.Image, name string) (string, error) {
	transport, err := image.NewTransport(w.CA, "")
	if err != nil {
		return "", err
	}
	if _, err := image.Push(ctx, img, "docker://"+w.Registry+"/"+name, image.Options{Transport: transport, PlainHTTP: w.tls == nil}); err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	_, port, _ := net.SplitHostPort(w.Registry)
	return "docker://" + net.JoinHostPort(guestHost, port) + "/" + name + "@" + digest.String(), nil
}

// SetKey gives the broker a key.
func (w *World) SetKey(path string, key []byte) error {
	file := filepath.Join(w.kbsDir(), "keys", filepath.FromSlash(path))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, key, 0o600)
}

// Allow writes the broker's policy: each of paths goes to this measurement with this manifest, and to nobody else.
func (w *World) Allow(m evidence.Measurement, raw []byte, paths ...string) error {
	return w.AllowAny([]evidence.Measurement{m}, raw, paths...)
}

// AllowAny is Allow for a VM that may measure to one thing or another.
func (w *World) AllowAny(ms []evidence.Measurement, raw []byte, paths ...string) error {
	p := kbsserver.Policy{}
	for _, path := range paths {
		p[path] = kbsserver.Rule{Measurements: ms, InitData: []kbsserver.Digest{manifest.InitdataDigest(manifest.Wrap(raw))}}
	}
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(w.kbsDir(), "policy.json"), b, 0o600)
}

// PythonImage is the algorithm: Debian's Python in two layers, and a layer with script, which is the entrypoint.
func PythonImage(ctx context.Context, cache string, script []byte, say func(string, ...any)) (v1.Image, error) {
	base, interpreter, err := python{cache, say}.image(ctx)
	if err != nil {
		return nil, err
	}
	l, err := Layer(map[string]string{"algorithm/main.py": string(script)})
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(base, l)
	if err != nil {
		return nil, err
	}
	cf, err := base.ConfigFile()
	if err != nil {
		return nil, err
	}
	c := cf.Config
	c.Entrypoint, c.WorkingDir, c.User = []string{interpreter, "/algorithm/main.py"}, "/cocos", "1000"
	return configure(img, c)
}

// Image is an image of one layer with the given files, which is also how a dataset travels.
func Image(files map[string]string, c v1.Config) (v1.Image, error) {
	l, err := Layer(files)
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(nothing, l)
	if err != nil {
		return nil, err
	}
	return configure(img, c)
}

// Inputs are the demo's two images: linear regression in Python, and a table of houses.
func Inputs(ctx context.Context, cache string, say func(string, ...any)) (algo, data v1.Image, err error) {
	if algo, err = PythonImage(ctx, cache, algorithm, say); err != nil {
		return nil, nil, fmt.Errorf("algorithm image: %w", err)
	}
	data, err = Image(map[string]string{"houses.csv": string(dataset)}, v1.Config{})
	return algo, data, err
}

// Dataset is the demo's CSV, for an independent fit.
func Dataset() []byte { return dataset }
