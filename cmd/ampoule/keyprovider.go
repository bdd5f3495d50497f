package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	keyproviderpb "github.com/containers/ocicrypt/utils/keyprovider"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ampoule-vm/ampoule/internal/keyprovider"
)

const keyproviderHelp = `
usage: ampoule keyprovider --keys DIR [--kbs URL …] [--listen 127.0.0.1:50000]
       ampoule keyprovider --kbs URL --admin-token-file FILE [--ca FILE] [--listen 127.0.0.1:50000]
       ampoule keyprovider --keys DIR --stdio

Wraps and opens layer keys for skopeo, buildah and others with ocicrypt, as CoCo's key provider does, until it is
interrupted. Keys are DIR/REPO/TYPE/TAG, 32 raw bytes; one that is missing is made when it is to wrap. Whoever can
connect can have the keys of DIR used, so that the address is of this machine: a loopback one, or unix:FILE.

With --kbs each key that wraps is posted to that broker first. Without --keys it is then kept nowhere else: such a
provider takes the parameter keypath, or makes a key and an id for each layer, and opens nothing, since a broker gives
keys to machines that attest.

Tools find it by a file that OCICRYPT_KEYPROVIDER_CONFIG names:
  {"key-providers": {"attestation-agent": {"grpc": "127.0.0.1:50000"}}}
or run it for each layer, with --stdio:
  {"key-providers": {"attestation-agent": {"cmd": {"path": "ampoule", "args": ["keyprovider", "--keys", "DIR", "--stdio"]}}}}

Examples:
  ampoule keyprovider --keys broker/keys &
  skopeo copy --encryption-key provider:attestation-agent:keyid=kbs:///default/key/algo-key::algorithm=A256GCM \
    oci:layout docker://registry.example/algo
  skopeo copy --decryption-key provider:attestation-agent:cc_kbc::null docker://registry.example/algo oci:clear`

func keyproviderVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("keyprovider", keyproviderHelp, std)
	var broker administrator
	dir := fs.String("keys", "", "folder of keys")
	broker.postFlags(fs)
	address := fs.String("listen", "127.0.0.1:50000", "loopback address, or unix:FILE")
	command := fs.Bool("stdio", false, "answer the one request on standard input, and end")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if *dir == "" && broker.url == "" {
		return usagef("--keys is missing, or --kbs; ampoule keyprovider -h explains it")
	}
	p := &keyprovider.Provider{Dir: *dir}
	if broker.url != "" {
		if _, err := broker.base(); err != nil {
			return err
		}
		if broker.token == "-" {
			return usagef("--admin-token-file -: standard input is read once, and a token for each key; name a file")
		}
		p.Post = func(ctx context.Context, path string, key []byte) error { return broker.post(ctx, std, path, key) }
	}
	if *command {
		in, err := std.readFile("-", 1<<20)
		if err != nil {
			return err
		}
		out, err := p.Answer(ctx, in)
		if err != nil {
			return err
		}
		defer clear(out)
		_, err = std.out.Write(out)
		return err
	}
	l, err := listenLocal(*address)
	if err != nil {
		return err
	}
	std.say("keyprovider: serving %s on %s", cmp.Or(*dir, broker.url), l.Addr())
	return serveKeys(ctx, l, p)
}

// listenLocal opens an address that other machines cannot reach.
func listenLocal(address string) (net.Listener, error) {
	if file, ok := strings.CutPrefix(address, "unix:"); ok {
		l, err := net.Listen("unix", file)
		if err != nil {
			return nil, fmt.Errorf("--listen %s: %w", address, err)
		}
		return l, os.Chmod(file, 0o600)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, usagef("--listen %q: want 127.0.0.1:PORT, [::1]:PORT or unix:FILE", address)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, usagef("--listen %s: whoever connects can use the keys; want a loopback address, or unix:FILE", address)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w", address, err)
	}
	return l, nil
}

// keyService is ocicrypt's service in gRPC.
type keyService struct {
	keyproviderpb.UnimplementedKeyProviderServiceServer
	p *keyprovider.Provider
}

func (s keyService) WrapKey(ctx context.Context, in *keyproviderpb.KeyProviderKeyWrapProtocolInput) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
	return answered(s.p.Wrap(ctx, in.GetKeyProviderKeyWrapProtocolInput()))
}

func (s keyService) UnWrapKey(_ context.Context, in *keyproviderpb.KeyProviderKeyWrapProtocolInput) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
	return answered(s.p.Unwrap(in.GetKeyProviderKeyWrapProtocolInput()))
}

func answered(b []byte, err error) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &keyproviderpb.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: b}, nil
}

// serveKeys answers until ctx ends.
func serveKeys(ctx context.Context, l net.Listener, p *keyprovider.Provider) error {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(2 << 20))
	keyproviderpb.RegisterKeyProviderServiceServer(s, keyService{p: p})
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	err := s.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}
