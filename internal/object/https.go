package object

import (
	"fmt"
	"net/http"
	"net/url"
)

// https is a file of a web server, a pre-signed URL for instance. It may send us on.
func (c *client) https(src Source) (err error) {
	if c.url, err = url.Parse(src.URI); err != nil || c.url.Host == "" {
		return fmt.Errorf("%w: it is no URL", ErrFormat) // whose error would quote it
	}
	if c.url.User != nil {
		return fmt.Errorf("%w: the URL has a user or password; keep them at the key broker and name them in stores[].credentials", ErrFormat)
	}
	c.url.Fragment, c.url.RawFragment = "", ""
	c.hops = maxRedirects
	if src.Login == nil {
		return nil
	}
	if !src.Login.bearer() {
		return fmt.Errorf("%w: a web server takes an access token, and the credentials are an access key", ErrFormat)
	}
	c.auth = src.Login.bear
	return nil
}

// bear sends the token (RFC 6750 §2.1).
func (l *Credentials) bear(req *http.Request) {
	req.Header.Set("Authorization", "Bearer "+string(l.token))
}
