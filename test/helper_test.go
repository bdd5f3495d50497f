package test

import (
	"crypto/sha256"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

func (r *trial) probeImage() v1.Image {
	r.Helper()
	program, err := probe()
	if err != nil {
		r.Fatal(err)
	}
	img, err := demo.Image(map[string]string{"probe": program}, v1.Config{Entrypoint: []string{"/probe"}, WorkingDir: "/cocos", User: "1000"})
	if err != nil {
		r.Fatal(err)
	}
	return img
}

func (r *trial) fileImage(files map[string]string) v1.Image {
	r.Helper()
	img, err := demo.Image(files, v1.Config{})
	if err != nil {
		r.Fatal(err)
	}
	return img
}

// publish puts an image into the registry, encrypted under a new key or as it is.
func (r *trial) publish(name, path string, img v1.Image, encrypted bool) string {
	r.Helper()
	var uri string
	var err error
	if encrypted {
		uri, err = r.world.Publish(r.Context(), img, name, path)
	} else {
		uri, err = r.world.Push(r.Context(), img, name)
	}
	if err != nil {
		r.Fatal(err)
	}
	return uri
}

func (r *trial) root() verify.Root {
	r.Helper()
	root, err := verify.LoadRoot(r.world.PSP.RootPEM())
	if err != nil {
		r.Fatal(err)
	}
	return root
}

func (r *trial) sum(path string) []byte {
	r.Helper()
	f, err := os.Open(path)
	if err != nil {
		r.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		r.Fatal(err)
	}
	return h.Sum(nil)
}

func (r *trial) read(path string) string {
	r.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		r.Fatal(err)
	}
	return string(b)
}
