package sink

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/image"
)

// The types of what is pushed to a registry.
const (
	ResultType  = "application/vnd.ampoule.result.v1"
	ReceiptType = "application/vnd.ampoule.receipt.v1+json"
)

const title = "org.opencontainers.image.title"

// OpenOCI makes the sink of a registry: the result is an artifact of one file, and the receipt a referrer of it.
func OpenOCI(uri string, o image.Options) (Sink, error) {
	t, err := image.OpenTarget(uri, o)
	if err != nil {
		return nil, err
	}
	return &oci{target: t, stall: maxStall}, nil
}

type oci struct {
	target *image.Target
	stall  time.Duration

	mu     sync.Mutex
	result *image.Descriptor // what the receipt refers to
}

func (o *oci) PutResult(ctx context.Context, r Result) error {
	mediaType := ResultType + ".tar+zstd"
	if strings.HasSuffix(r.Name, ".age") {
		mediaType += "+age"
	}
	file := image.Descriptor{MediaType: mediaType, Digest: fmt.Sprintf("sha256:%x", r.SHA256), Size: r.Size, Annotations: map[string]string{title: r.Name}}
	d, err := o.push(ctx, image.Artifact{Type: ResultType, File: file}, r)
	if err == nil {
		o.mu.Lock()
		o.result = &d
		o.mu.Unlock()
	}
	return err
}

func (o *oci) PutReceipt(ctx context.Context, receipt []byte) error {
	o.mu.Lock()
	subject := o.result
	o.mu.Unlock()
	if subject == nil {
		return fmt.Errorf("the receipt refers to the result, which is not there")
	}
	file := image.Describe(ReceiptType, receipt)
	file.Annotations = map[string]string{title: "receipt.json"}
	_, err := o.push(ctx, image.Artifact{Type: ReceiptType, File: file, Subject: subject}, bytes.NewReader(receipt))
	return err
}

func (o *oci) push(ctx context.Context, a image.Artifact, body io.ReaderAt) (d image.Descriptor, err error) {
	empty := image.Empty()
	if err := o.blob(ctx, empty, bytes.NewReader(empty.Data)); err != nil {
		return d, err
	}
	if err := o.blob(ctx, a.File, body); err != nil {
		return d, err
	}
	err = Retry(ctx, func(ctx context.Context) (err error) {
		d, err = o.target.Manifest(ctx, a)
		return err
	})
	return d, err
}

func (o *oci) blob(ctx context.Context, d image.Descriptor, body io.ReaderAt) error {
	return Retry(ctx, func(ctx context.Context) error {
		w, ctx := watch(ctx, o.stall)
		defer w.stop()
		return w.explain(o.target.Blob(ctx, d, w.body(io.NewSectionReader(body, 0, d.Size))))
	})
}
