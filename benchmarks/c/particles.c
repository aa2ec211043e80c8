/* Minimal bootstrap particle filters, systematic resampling at every step. Estimate of the physical limit. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define LOG_2_PI 1.8378770664093453

/* Eight xoshiro256+ streams side by side, so that they vectorise. */
typedef struct { uint64_t s[4][8]; } Stream;

static uint64_t rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

static uint64_t split_mix(uint64_t* x) {
  uint64_t z = (*x += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

static void seed(Stream* r, uint64_t value) {
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 8; j++) r->s[i][j] = split_mix(&value);
}

/* n a multiple of 8 */
static void uniforms(Stream* r, double* u, int n) {
  for (int i = 0; i < n; i += 8)
    for (int j = 0; j < 8; j++) {
      uint64_t a = r->s[0][j], b = r->s[1][j], c = r->s[2][j], d = r->s[3][j];
      uint64_t sum = a + d, t = b << 17;
      c ^= a; d ^= b; b ^= c; a ^= d; c ^= t; d = rotate(d, 45);
      r->s[0][j] = a; r->s[1][j] = b; r->s[2][j] = c; r->s[3][j] = d;
      union { uint64_t bits; double x; } v;
      v.bits = (sum >> 12) | 0x3ff0000000000000ULL;
      u[i + j] = v.x - 1.0 + 1e-17;
    }
}

/* Box–Muller; n a multiple of 16 */
static void normals(Stream* r, double* z, double* u, int n) {
  uniforms(r, u, n);
  int half = n / 2;
  for (int i = 0; i < half; i++) {
    double a = sqrt(-2 * log(u[i])), b = 6.283185307179586 * u[half + i];
    z[i] = a * cos(b);
    z[half + i] = a * sin(b);
  }
}

static void systematic(const double* w, double total, double u, int n, int* ancestors) {
  double c = w[0], step = total / n, x = u * step;
  for (int i = 0, j = 0; i < n; i++, x += step) {
    while (x > c && j < n - 1) c += w[++j];
    ancestors[i] = j;
  }
}

static double weigh(double* w, int n, double* total) {
  double peak = -1e300, sum = 0;
  for (int i = 0; i < n; i++) peak = w[i] > peak ? w[i] : peak;
  for (int i = 0; i < n; i++) {
    w[i] = exp(w[i] - peak);
    sum += w[i];
  }
  *total = sum;
  return peak + log(sum / n);
}

/* x' = mean + persistence (x - mean) + scale e;  y ~ N(0, exp(x)) */
double particles_sv(long T, int n, const double* y, double mean, double persistence, double scale,
                    uint64_t value) {
  int m = (n + 15) / 16 * 16;
  double *x = malloc(8 * m), *before = malloc(8 * m), *w = malloc(8 * m), *z = malloc(8 * m),
         *u = malloc(8 * m), one[8], total, sum = 0;
  int* ancestors = malloc(4 * m);
  Stream r;
  seed(&r, value);
  normals(&r, z, u, m);
  double first = scale / sqrt(1 - persistence * persistence), c = (1 - persistence) * mean;
  for (int i = 0; i < n; i++) x[i] = mean + first * z[i];
  for (long t = 0; t < T; t++) {
    if (t) {
      normals(&r, z, u, m);
      for (int i = 0; i < n; i++) x[i] = c + persistence * before[i] + scale * z[i];
    }
    double square = y[t] * y[t];
    for (int i = 0; i < n; i++) w[i] = -0.5 * (x[i] + square * exp(-x[i]));
    sum += weigh(w, n, &total) - 0.5 * LOG_2_PI;
    uniforms(&r, one, 8);
    systematic(w, total, one[0], n, ancestors);
    for (int i = 0; i < n; i++) before[i] = x[ancestors[i]];
  }
  free(x); free(before); free(w); free(z); free(u); free(ancestors);
  return sum;
}

/* Position and velocity in the plane; the position is seen. The first state is one step after N(0, I). */
double particles_cv(long T, int n, const double* y, double dt, double move, double noise, uint64_t value) {
  int m = (n + 15) / 16 * 16;
  double *x = malloc(32 * m), *before = malloc(32 * m), *w = malloc(8 * m), *z = malloc(32 * m),
         *u = malloc(32 * m), one[8], total, sum = 0;
  int* ancestors = malloc(4 * m);
  Stream r;
  seed(&r, value);
  normals(&r, before, u, 4 * m);
  double half = 0.5 / (noise * noise);
  for (long t = 0; t < T; t++) {
    normals(&r, z, u, 4 * m);
    for (int k = 0; k < 2; k++)
      for (int i = 0; i < n; i++) {
        double v = before[(k + 2) * m + i];
        x[k * m + i] = before[k * m + i] + dt * v + move * z[k * m + i];
        x[(k + 2) * m + i] = v + move * z[(k + 2) * m + i];
      }
    double a = y[2 * t], b = y[2 * t + 1];
    for (int i = 0; i < n; i++)
      w[i] = -half * ((a - x[i]) * (a - x[i]) + (b - x[m + i]) * (b - x[m + i]));
    sum += weigh(w, n, &total) - LOG_2_PI - 2 * log(noise);
    uniforms(&r, one, 8);
    systematic(w, total, one[0], n, ancestors);
    for (int k = 0; k < 4; k++)
      for (int i = 0; i < n; i++) before[k * m + i] = x[k * m + ancestors[i]];
  }
  free(x); free(before); free(w); free(z); free(u); free(ancestors);
  return sum;
}
