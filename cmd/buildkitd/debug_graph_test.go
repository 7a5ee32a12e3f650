package main

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSetupDebugGraph(t *testing.T) {
	t.Parallel()
	m := http.NewServeMux()
	setupDebugGraph(m)
	for method, code := range map[string]int{
		http.MethodGet:  http.StatusServiceUnavailable, // there is no solver in this process
		http.MethodPost: http.StatusMethodNotAllowed,
	} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, "/debug/graph", nil))
		require.Equal(t, code, w.Code, method)
	}
}
