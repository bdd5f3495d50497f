package sink

import (
	"context"
	"net/http"
)

// putWhole sends the result in one PUT, and from its beginning again when that breaks off: pre-signed URLs of S3 and of what speaks
// like it, of GCS, or a web server's. No header is sent that the URL may not have been signed with.
func putWhole(ctx context.Context, s *store, r Result) error {
	return s.put(ctx, request{http.MethodPut, s.url, s.headers, r, 0, r.Size})
}
