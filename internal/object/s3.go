package object

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const defaultRegion = "us-east-1"

// s3 is an object of S3, or of a store that speaks as it does.
func (c *client) s3(src Source) (err error) {
	bucket, key, err := splitKey(src.URI)
	if err != nil {
		return err
	}
	region := cmp.Or(src.Store.Region, defaultRegion)
	if c.url, err = url.Parse(cmp.Or(src.Store.Endpoint, "https://s3."+region+".amazonaws.com")); err != nil {
		return fmt.Errorf("%w: endpoint: it is no URL", ErrFormat)
	}
	// A certificate for *.s3… does not hold for a name with more dots.
	c.locate(bucket, key, src.Store.PathStyle || strings.Contains(bucket, "."))
	switch {
	case src.Login == nil:
	case src.Login.bearer():
		return fmt.Errorf("%w: S3 takes an access key, and the credentials are an access token", ErrFormat)
	default:
		c.auth = (&signer{src.Login, region, "s3", c.now}).authorize
	}
	return nil
}

// splitKey reads scheme://bucket/key. The key is not a URL's path: it is taken as it is, % and ? too.
func splitKey(uri string) (bucket, key string, err error) {
	_, rest, _ := strings.Cut(uri, "://")
	bucket, key, ok := strings.Cut(rest, "/")
	if !ok || bucket == "" || key == "" {
		return "", "", fmt.Errorf("%w: want scheme://bucket/key", ErrFormat)
	}
	if parts := "/" + key + "/"; strings.Contains(parts, "/./") || strings.Contains(parts, "/../") {
		return "", "", fmt.Errorf("%w: . or .. in the key, which servers take for another key", ErrFormat)
	}
	return bucket, key, nil
}

// locate turns an endpoint into an object's URL.
func (c *client) locate(bucket, key string, pathStyle bool) {
	path := c.url.Path + "/"
	if pathStyle {
		path += bucket + "/"
	} else {
		c.url.Host = bucket + "." + c.url.Host
	}
	c.url.Path, c.url.RawPath = path+key, escape(path+key)
}

// escape is UriEncode of Signature Version 4: every byte but these. net/url leaves more of them alone.
func escape(path string) string {
	var b []byte
	for _, c := range []byte(path) {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~/", c) >= 0 {
			b = append(b, c)
		} else {
			b = fmt.Appendf(b, "%%%02X", c)
		}
	}
	return string(b)
}

// signer is AWS Signature Version 4 for requests without a body. The SDK of AWS would do the same in some megabytes.
type signer struct {
	login           *Credentials
	region, service string
	now             func() time.Time
}

var emptySum = hexSum("")

func (s *signer) authorize(req *http.Request) {
	req.Header.Set("X-Amz-Date", s.now().UTC().Format("20060102T150405Z"))
	req.Header.Set("X-Amz-Content-Sha256", emptySum)
	if len(s.login.session) > 0 {
		req.Header.Set("X-Amz-Security-Token", string(s.login.session))
	}
	req.Header.Set("Authorization", s.authorization(req))
}

// authorization signs the host, the range and what is AWS's own. Other headers are for whoever is on the way to change: Google's front ends
// rewrite Accept-Encoding.
func (s *signer) authorization(req *http.Request) string {
	signed, headers := "host", "host:"+req.Host+"\n"
	for _, name := range []string{"range", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"} { // in order
		if v := req.Header.Get(name); v != "" {
			signed, headers = signed+";"+name, headers+name+":"+v+"\n"
		}
	}
	canonical := req.Method + "\n" + req.URL.EscapedPath() + "\n\n" + headers + "\n" + signed + "\n" + emptySum // no query
	stamp := req.Header.Get("X-Amz-Date")
	scope := []string{stamp[:8], s.region, s.service, "aws4_request"}
	where := strings.Join(scope, "/")
	key := append([]byte("AWS4"), s.login.secret...)
	for _, part := range append(scope, "AWS4-HMAC-SHA256\n"+stamp+"\n"+where+"\n"+hexSum(canonical)) {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(part))
		clear(key)
		key = h.Sum(nil)
	}
	return "AWS4-HMAC-SHA256 Credential=" + string(s.login.id) + "/" + where + ", SignedHeaders=" + signed + ", Signature=" + hex.EncodeToString(key)
}

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
