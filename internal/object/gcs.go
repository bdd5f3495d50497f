package object

import (
	"cmp"
	"fmt"
	"net/url"
)

// gcs is an object of Google Cloud Storage, by its XML API: for everyone, with an OAuth access token, or with an HMAC key, which signs as
// for S3 ("interoperability").
func (c *client) gcs(src Source) (err error) {
	bucket, key, err := splitKey(src.URI)
	if err != nil {
		return err
	}
	if c.url, err = url.Parse(cmp.Or(src.Store.Endpoint, "https://storage.googleapis.com")); err != nil {
		return fmt.Errorf("%w: endpoint: it is no URL", ErrFormat)
	}
	c.locate(bucket, key, true)
	switch {
	case src.Login == nil:
	case src.Login.bearer():
		c.auth = src.Login.bear
	default:
		c.auth = (&signer{src.Login, cmp.Or(src.Store.Region, "auto"), "s3", c.now}).authorize
	}
	return nil
}
