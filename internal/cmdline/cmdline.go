// Package cmdline is the one parser, and the one writer, of the ampoule.* keys of the kernel command line.
//
// The command line is measured (SNP kernel-hashes, UKI, simulated PSP), so what it says is the image's own
// will. A repeated or unknown ampoule.* key is fatal: first-wins and last-wins have both been exploited elsewhere.
package cmdline

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DefaultPort is the vsock port of CID 2 at which the host serves the manifest and takes events and results.
const DefaultPort = 1024

// DefaultDeadline bounds a whole run whose command line names no ampoule.deadline.
const DefaultDeadline = time.Hour

// The two profiles. Simulation is another kernel with another measurement; it may relax rules, production may not.
const (
	Production = "production"
	Simulation = "simulation"
)

// What an image may permit beyond the strict default, by ampoule.allow=.
const (
	AllowTag      = "tag"      // image references without a digest
	AllowHTTP     = "http"     // key brokers and registries over plain http
	AllowErrors   = "errors"   // error texts on the console
	AllowUnsealed = "unsealed" // results without recipients, returned in clear
	AllowUnbound  = "unbound"  // a manifest that the launch is not bound to
	AllowSample   = "sample"   // evidence of CoCo's sample attester, in place of the simulated processor's
)

var allowNames = []string{AllowTag, AllowHTTP, AllowErrors, AllowUnsealed, AllowUnbound, AllowSample}

// maxLine is the length of x86's COMMAND_LINE_SIZE, beyond which the kernel cuts.
const maxLine = 2048

// Allow is the set of what an image permits.
type Allow map[string]bool

// Has reports whether name is permitted.
func (a Allow) Has(name string) bool { return a[name] }

// String is the sorted, comma-separated list.
func (a Allow) String() string { return strings.Join(slices.Sorted(maps.Keys(a)), ",") }

// ParseAllow reads a comma-separated list; the empty string permits nothing.
func ParseAllow(s string) (Allow, error) {
	a := Allow{}
	if s == "" {
		return a, nil
	}
	for name := range strings.SplitSeq(s, ",") {
		switch {
		case !slices.Contains(allowNames, name):
			return nil, fmt.Errorf("%q is not a permission; want some of %s", name, strings.Join(allowNames, ","))
		case a[name]:
			return nil, fmt.Errorf("%q is there twice", name)
		}
		a[name] = true
	}
	return a, nil
}

// Image is the kind of source that is part of the image: its initramfs has the manifest.
const Image = "image"

// CVMS is the kind of source that is a computation server of Cocos, in images built with that.
const CVMS = "cvms"

// Source says where the manifest comes from: {"vsock", port}, {"cmdline", base64url of gzip}, {Image, ""} or {CVMS, "host:port"}.
type Source struct{ Kind, Arg string }

func (s Source) String() string { return s.Kind + ":" + s.Arg }

// ParseSource reads KIND:ARG.
func ParseSource(s string) (Source, error) {
	kind, arg, _ := strings.Cut(s, ":")
	switch kind {
	case "vsock":
		if n, err := strconv.ParseUint(arg, 10, 32); err != nil || n == 0 || strconv.FormatUint(n, 10) != arg {
			return Source{}, fmt.Errorf("vsock port %q: want 1 to 4294967295", arg)
		}
	case "cmdline":
		if _, err := base64.RawURLEncoding.Strict().DecodeString(arg); err != nil || arg == "" || strings.ContainsAny(arg, "\r\n") {
			return Source{}, fmt.Errorf("cmdline:%.40s: want the unpadded base64url of the gzipped manifest", arg)
		}
	case Image:
		if s != Image+":" {
			return Source{}, fmt.Errorf("%.40q: want image: with nothing behind it", s)
		}
	case CVMS:
		if !isHostPort(arg) {
			return Source{}, fmt.Errorf("cvms:%.300s: want cvms:HOST:PORT, as in cvms:cvms.example:7001 or cvms:[fd00::1]:7001", arg)
		}
	default:
		return Source{}, fmt.Errorf("%q is not a manifest source; want vsock:PORT, image:, cmdline:BASE64URL or cvms:HOST:PORT", kind)
	}
	return Source{kind, arg}, nil
}

// isHostPort reports whether s is an address, or a name of letters, digits and dashes, and a port, each in its one spelling.
func isHostPort(s string) bool {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return false
	}
	host, port := s[:i], s[i+1:]
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return false
	}
	if at, err := netip.ParseAddrPort(s); err == nil {
		return at.String() == s && at.Addr().Zone() == ""
	}
	if len(host) > 253 {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
			return false
		}
	}
	return true
}

// Net is the network that the image asks for. Mode is "none", "dhcp" or "static"; the rest is for static only.
type Net struct {
	Mode    string
	Addr    netip.Prefix
	Gateway netip.Addr
	DNS     netip.Addr // the zero Addr: none
}

func (n Net) String() string {
	if n.Mode != "static" {
		return n.Mode
	}
	s := "static:" + n.Addr.String() + "," + n.Gateway.String()
	if n.DNS.IsValid() {
		s += "," + n.DNS.String()
	}
	return s
}

// ParseNet reads none, dhcp or static:ADDR/BITS,GATEWAY[,DNS].
func ParseNet(s string) (Net, error) {
	if s == "none" || s == "dhcp" {
		return Net{Mode: s}, nil
	}
	spec, ok := strings.CutPrefix(s, "static:")
	if !ok {
		return Net{}, fmt.Errorf("%q is not a network; want none, dhcp or static:ADDR/BITS,GATEWAY[,DNS]", s)
	}
	f := strings.Split(spec, ",")
	if len(f) != 2 && len(f) != 3 {
		return Net{}, fmt.Errorf("static:%s has %d parts; want ADDR/BITS,GATEWAY[,DNS]", spec, len(f))
	}
	n := Net{Mode: "static"}
	var err error
	if n.Addr, err = netip.ParsePrefix(f[0]); err != nil {
		return Net{}, fmt.Errorf("static address: %w", err)
	}
	if n.Gateway, err = netip.ParseAddr(f[1]); err != nil {
		return Net{}, fmt.Errorf("static gateway: %w", err)
	}
	if len(f) == 3 {
		if n.DNS, err = netip.ParseAddr(f[2]); err != nil {
			return Net{}, fmt.Errorf("static name server: %w", err)
		}
	}
	if n.Addr.Addr().Is4() != n.Gateway.Is4() {
		return Net{}, fmt.Errorf("static:%s: the address is of another IP version than the gateway", spec)
	}
	if n.Addr.Addr().Zone() != "" || n.Gateway.Zone() != "" || n.DNS.Zone() != "" {
		return Net{}, fmt.Errorf("static:%s: an address with a zone", spec)
	}
	return n, nil
}

// ParseSwap reads the name of a whole disk as the kernel gives it to those of virtio, SCSI and NVMe. Which of several gets which is the
// host's to say, and does not matter: nothing on it is believed.
func ParseSwap(s string) (string, error) {
	in := func(i int, from, to byte) bool { return s[i] >= from && s[i] <= to }
	switch {
	case len(s) == 3 && (s[:2] == "vd" || s[:2] == "sd") && in(2, 'a', 'z'):
	case len(s) == 7 && s[:4] == "nvme" && in(4, '0', '9') && s[5] == 'n' && in(6, '1', '9'):
	default:
		return "", fmt.Errorf("%.40q is not a disk to swap to; want vda to vdz, sda to sdz, or nvme0n1 to nvme9n9", s)
	}
	return s, nil
}

// Options is what the ampoule.* keys say.
type Options struct {
	Profile  string        // ampoule.profile=production|simulation; the one mandatory key
	Allow    Allow         // ampoule.allow=tag,http,…; production permits nothing
	Manifest Source        // ampoule.manifest=vsock:1024 (default) | cmdline:… | image: | cvms:HOST:PORT
	SHA384   []byte        // ampoule.manifest-sha384=<96 hex>; nil when absent
	Net      Net           // ampoule.net=none (default) | dhcp | static:…
	Swap     string        // ampoule.swap=vda, a disk below /dev that takes encrypted swap; "": none
	Deadline time.Duration // ampoule.deadline=10m, of the whole run; default one hour
}

// Simulation reports whether the image says that its TEE is simulated.
func (o Options) Simulation() bool { return o.Profile == Simulation }

// String is the canonical ampoule.* part of a command line; Parse reads it back to the same Options.
func (o Options) String() string {
	f := []string{"ampoule.profile=" + o.Profile}
	if len(o.Allow) > 0 {
		f = append(f, "ampoule.allow="+o.Allow.String())
	}
	if o.Manifest.Kind != "" {
		f = append(f, "ampoule.manifest="+o.Manifest.String())
	}
	if o.SHA384 != nil {
		f = append(f, "ampoule.manifest-sha384="+hex.EncodeToString(o.SHA384))
	}
	if o.Net.Mode != "" {
		f = append(f, "ampoule.net="+o.Net.String())
	}
	if o.Swap != "" {
		f = append(f, "ampoule.swap="+o.Swap)
	}
	if o.Deadline != 0 {
		f = append(f, "ampoule.deadline="+o.Deadline.String())
	}
	return strings.Join(f, " ")
}

// keys maps every known key to what it sets.
var keys = map[string]func(*Options, string) error{
	"profile": func(o *Options, v string) error {
		if v != Production && v != Simulation {
			return fmt.Errorf("%q is not a profile; want %s or %s", v, Production, Simulation)
		}
		o.Profile = v
		return nil
	},
	"allow":    func(o *Options, v string) (err error) { o.Allow, err = ParseAllow(v); return },
	"manifest": func(o *Options, v string) (err error) { o.Manifest, err = ParseSource(v); return },
	"net":      func(o *Options, v string) (err error) { o.Net, err = ParseNet(v); return },
	"swap":     func(o *Options, v string) (err error) { o.Swap, err = ParseSwap(v); return },
	"manifest-sha384": func(o *Options, v string) error {
		b, err := hex.DecodeString(v)
		if err != nil || len(b) != 48 || strings.ToLower(v) != v {
			return fmt.Errorf("%q is not a SHA-384; want 96 lower-case hex digits", v)
		}
		o.SHA384 = b
		return nil
	},
	"deadline": func(o *Options, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < time.Second || d > 30*24*time.Hour {
			return fmt.Errorf("%q is not a deadline; want 1s to 720h, as in 10m", v)
		}
		o.Deadline = d
		return nil
	},
}

// Parse reads the ampoule.* keys of a kernel command line, with the kernel's own quoting. Other keys are the
// kernel's and are passed over. All problems are reported at once.
func Parse(line string) (Options, error) {
	o := Options{
		Allow:    Allow{},
		Manifest: Source{"vsock", strconv.Itoa(DefaultPort)},
		Net:      Net{Mode: "none"},
		Deadline: DefaultDeadline,
	}
	if len(line) >= maxLine {
		return o, fmt.Errorf("command line: %d bytes, and the kernel cuts at %d", len(line), maxLine)
	}
	var errs []error
	seen := map[string]bool{}
	words := split(line)
	for i, word := range words {
		name, value, _ := strings.Cut(word, "=")
		// The kernel takes - and _ in a name as the same, so a look-alike of ours is ours.
		plain := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
		if plain != "ampoule" && !strings.HasPrefix(plain, "ampoule.") {
			continue
		}
		key := strings.TrimPrefix(name, "ampoule.")
		set, known := keys[key]
		switch {
		case slices.Contains(words[:i], "--"):
			errs = append(errs, fmt.Errorf("%s: stands behind --, where the kernel hands it to init as an argument; put it before", name))
		case !known || key == name:
			errs = append(errs, fmt.Errorf("%s: unknown key; known are %s", name, knownKeys()))
		case seen[key]:
			errs = append(errs, fmt.Errorf("%s: is there twice", name))
		default:
			seen[key] = true
			if err := set(&o, value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	}
	if !seen["profile"] {
		errs = append(errs, fmt.Errorf("ampoule.profile: is missing; want %s or %s", Production, Simulation))
	}
	if o.Profile == Production && len(o.Allow) > 0 {
		errs = append(errs, fmt.Errorf("ampoule.allow: %s: a production image permits nothing; use --profile simulation", o.Allow))
	}
	if o.Manifest.Kind == CVMS && o.Net.Mode == "none" {
		errs = append(errs, fmt.Errorf("ampoule.manifest: %s is on the network and ampoule.net is none; want dhcp or static", o.Manifest))
	}
	return o, errors.Join(errs...)
}

func knownKeys() string {
	return "ampoule." + strings.Join(slices.Sorted(maps.Keys(keys)), ", ampoule.")
}

// split cuts a command line into words as lib/cmdline.c next_arg does: white space separates, double quotes hold
// together, and quotes around a whole word or a whole value are taken off. 0xa0 is white space to the kernel, which
// reads Latin-1. Words behind "--" are returned as well, so that Parse can refuse what hides there.
func split(line string) []string {
	var words []string
	var b strings.Builder
	quoted, open := false, false
	flush := func() {
		if open {
			words = append(words, unquote(b.String()))
		}
		b.Reset()
		open = false
	}
	for _, c := range []byte(line) {
		switch {
		case c == '"':
			quoted, open = !quoted, true
			b.WriteByte(c)
		case !quoted && (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f' || c == 0xa0):
			flush()
		default:
			open = true
			b.WriteByte(c)
		}
	}
	flush()
	return words
}

func unquote(w string) string {
	if w, ok := strings.CutPrefix(w, `"`); ok {
		return strings.TrimSuffix(w, `"`)
	}
	name, value, ok := strings.Cut(w, "=")
	if v, q := strings.CutPrefix(value, `"`); ok && q {
		return name + "=" + strings.TrimSuffix(v, `"`)
	}
	return w
}
