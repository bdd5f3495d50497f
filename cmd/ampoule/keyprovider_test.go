package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocicrypt "github.com/containers/ocicrypt/config"
	keyproviderconfig "github.com/containers/ocicrypt/config/keyprovider-config"
	wrapper "github.com/containers/ocicrypt/keywrap/keyprovider"

	"github.com/ampoule-vm/ampoule/internal/keyprovider"
)

// TestKeyProvider: ocicrypt itself, which skopeo and buildah are built with, wraps and opens keys by the service.
func TestKeyProvider(t *testing.T) {
	dir := t.TempDir()
	given := filepath.Join(t.TempDir(), "given")
	if err := os.WriteFile(given, []byte(strings.Repeat("g", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	const data = `{"symkey":"layer"}`
	serve := func(t *testing.T, dir, address string) string {
		l, err := listenLocal(address)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- serveKeys(ctx, l, &keyprovider.Provider{Dir: dir}) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		if l.Addr().Network() == "unix" {
			return "unix:" + l.Addr().String()
		}
		return l.Addr().String()
	}
	wrap := func(address, param string) ([]byte, error) {
		w := wrapper.NewKeyWrapper(keyprovider.Name, keyproviderconfig.KeyProviderAttrs{Grpc: address})
		return w.WrapKeys(&ocicrypt.EncryptConfig{Parameters: map[string][][]byte{keyprovider.Name: {[]byte(param)}}}, []byte(data))
	}
	unwrap := func(address string, packet []byte) (string, error) {
		w := wrapper.NewKeyWrapper(keyprovider.Name, keyproviderconfig.KeyProviderAttrs{Grpc: address})
		b, err := w.UnwrapKey(&ocicrypt.DecryptConfig{Parameters: map[string][][]byte{keyprovider.Name: {[]byte("cc_kbc::null")}}}, packet)
		return string(b), err
	}
	for _, address := range []string{serve(t, dir, "127.0.0.1:0"), serve(t, dir, "unix:"+filepath.Join(t.TempDir(), "s"))} {
		for param, kid := range map[string]string{
			"keyid=kbs:///default/key/made::algorithm=A256GCM":                  `"kid":"kbs:///default/key/made"`,
			"keyid=/default/key/made":                                           `"kid":"kbs:///default/key/made"`,
			"sample=false::keypath=" + given + "::keyid=kbs:///default/key/one": `"kid":"kbs:///default/key/one"`,
			"keypath=" + given:                                                  `"kid":"kbs:///default/image-kek/`,
			"":                                                                  `"kid":"kbs:///default/image-kek/`,
		} {
			packet, err := wrap(address, param)
			if err != nil || !strings.Contains(string(packet), kid) {
				t.Errorf("%s: %s, %v, want %s", param, packet, err, kid)
				continue
			}
			if got, err := unwrap(address, packet); err != nil || got != data {
				t.Errorf("%s: opens to %q, %v", param, got, err)
			}
		}
	}
	if i, err := os.Stat(filepath.Join(dir, "default/key/made")); err != nil || i.Size() != 32 || i.Mode().Perm() != 0o600 {
		t.Errorf("the key that was made: %v, %v", i, err)
	}
	address := serve(t, dir, "127.0.0.1:0")
	for param, want := range map[string]string{
		"sample=true":                                    "published sample key",
		"keyid=kbs:///default/test-key/1":                "published sample key",
		"keyid=kbs:///default/key":                       "three path components",
		"keyid=kbs:///default/../key":                    "dot name",
		"algorithm=A256CTR":                              "only A256GCM",
		"colour=red":                                     "unknown",
		"keyid=kbs:///a/b/c::keyid=kbs:///a/b/d":         "each once",
		"keypath=" + dir:                                 "32 raw bytes",
		"keypath=" + given + "::keyid=/default/key/made": "another one",
	} {
		if _, err := wrap(address, param); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", param, err, want)
		}
	}
	packet, err := wrap(address, "keyid=kbs:///default/key/made")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unwrap(serve(t, t.TempDir(), "127.0.0.1:0"), packet); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without the key: %v", err)
	}
	for _, address := range []string{"0.0.0.0:0", "192.0.2.1:0", ":0", "localhost", "example.com:1"} {
		if l, err := listenLocal(address); err == nil {
			t.Errorf("%s is taken for this machine's", errors.Join(l.Close()))
		} else if _, ok := errors.AsType[*net.OpError](err); ok {
			t.Errorf("%s: was tried: %v", address, err)
		}
	}
}
