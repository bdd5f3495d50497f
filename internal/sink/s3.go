package sink

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

const (
	s3MinPart = 5 << 20 // bytes of each part but the last
	s3MaxPart = 5 << 30
)

// checkS3 judges a multipart upload that its owner has created, with a pre-signed URL for each part and one to complete it.
func checkS3(u *Upload) error {
	switch {
	case len(u.parts) == 0 || u.complete == nil || u.url != nil || len(u.headers) > 0:
		return errors.New("upload: method s3 wants parts, part_bytes and complete_url, and neither url nor headers; for one PUT it is put")
	case u.partBytes < s3MinPart || u.partBytes > s3MaxPart:
		return fmt.Errorf("upload: part_bytes is %d, want %d to %d", u.partBytes, s3MinPart, int64(s3MaxPart))
	}
	for i, p := range u.parts {
		if n := p.Query().Get("partNumber"); n != "" && n != strconv.Itoa(i+1) {
			return fmt.Errorf("upload: parts[%d] is signed for partNumber %.10q, want %d", i, n, i+1)
		}
	}
	return nil
}

// putS3 sends the parts (docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html), each of which is sent anew by itself, and completes
// the upload.
func putS3(ctx context.Context, s *store, r Result) error {
	need := (r.Size + s.partBytes - 1) / s.partBytes
	if need > int64(len(s.parts)) {
		return fmt.Errorf("the result has %d bytes, and %d parts of %d are signed: it needs %d", r.Size, len(s.parts), s.partBytes, need)
	}
	var list strings.Builder
	list.WriteString(`<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`)
	for i := range need {
		from := i * s.partBytes
		q := request{http.MethodPut, s.parts[i], nil, r, from, min(s.partBytes, r.Size-from)}
		err := Retry(ctx, func(ctx context.Context) error {
			a, err := s.send(ctx, q)
			if err != nil {
				return err
			}
			tag := a.header.Get("ETag")
			if tag == "" || len(tag) > 256 || strings.ContainsAny(tag, "<>&") {
				return fmt.Errorf("%s: ETag %.40q", q, tag)
			}
			fmt.Fprintf(&list, "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", i+1, tag)
			return nil
		})
		if err != nil {
			return fmt.Errorf("part %d: %w", i+1, err)
		}
	}
	list.WriteString("</CompleteMultipartUpload>")
	text := list.String()
	q := request{http.MethodPost, s.complete, nil, strings.NewReader(text), 0, int64(len(text))}
	return Retry(ctx, func(ctx context.Context) error {
		a, err := s.send(ctx, q)
		if err == nil && !strings.Contains(a.body, "<CompleteMultipartUploadResult") {
			// S3 says 200 before it knows, and an error afterwards.
			err = &statusError{q.String(), http.StatusInternalServerError, codeIn(a.body), 0}
		}
		return err
	})
}
