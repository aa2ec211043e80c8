/* Minimal forward-backward and Viterbi recursions, compile-time K states. Estimate of the physical
 * limit. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifndef K
#define K 5
#endif

/* w: T x K log weights; returns log p(y). filtered and predicted (T x K) may be NULL. */
double hmm_forward(long T, const double* initial, const double* A, const double* w,
                   double* filtered, double* predicted) {
  double p[K], q[K], total = 0, product = 1;
  memcpy(p, initial, sizeof p);
  for (long t = 0; t < T; t++) {
    const double* l = w + t * K;
    double peak = l[0], sum = 0;
    for (int k = 1; k < K; k++) peak = l[k] > peak ? l[k] : peak;
    if (predicted) memcpy(predicted + t * K, p, sizeof p);
    for (int k = 0; k < K; k++) {
      p[k] *= exp(l[k] - peak);
      sum += p[k];
    }
    double inverse = 1 / sum;
    product *= sum;
    total += peak;
    if (product < 1e-200 || product > 1e200) {
      total += log(product);
      product = 1;
    }
    for (int k = 0; k < K; k++) p[k] *= inverse;
    if (filtered) memcpy(filtered + t * K, p, sizeof p);
    for (int j = 0; j < K; j++) q[j] = 0;
    for (int i = 0; i < K; i++)
      for (int j = 0; j < K; j++) q[j] += p[i] * A[i * K + j];
    memcpy(p, q, sizeof p);
  }
  return total + log(product);
}

/* gamma_t = filtered_t * A (gamma_{t+1} / predicted_{t+1}); At is the transpose of A; pairs: the
 * expected transitions K x K, or NULL */
void hmm_smooth(long T, const double* At, const double* filtered, const double* predicted,
                double* gamma, double* pairs, const double* A) {
  memcpy(gamma + (T - 1) * K, filtered + (T - 1) * K, K * sizeof(double));
  if (pairs) memset(pairs, 0, K * K * sizeof(double));
  for (long t = T - 2; t >= 0; t--) {
    double r[K], b[K];
    for (int k = 0; k < K; k++) r[k] = gamma[(t + 1) * K + k] / (predicted[(t + 1) * K + k] + 1e-300);
    for (int i = 0; i < K; i++) b[i] = 0;
    for (int j = 0; j < K; j++)
      for (int i = 0; i < K; i++) b[i] += r[j] * At[j * K + i];
    for (int i = 0; i < K; i++) gamma[t * K + i] = filtered[t * K + i] * b[i];
    if (pairs)
      for (int i = 0; i < K; i++)
        for (int j = 0; j < K; j++) pairs[i * K + j] += filtered[t * K + i] * r[j];
  }
  if (pairs)
    for (int i = 0; i < K * K; i++) pairs[i] *= A[i];
}

/* log_at: transpose of the log transition probabilities */
void hmm_viterbi(long T, const double* log_initial, const double* log_at, const double* w,
                 long long* path) {
  double score[K], next[K];
  int* before = malloc(T * K * sizeof(int));
  for (int k = 0; k < K; k++) score[k] = log_initial[k] + w[k];
  for (long t = 1; t < T; t++) {
    for (int j = 0; j < K; j++) {
      double best = -1e308;
      int from = 0;
      for (int i = 0; i < K; i++) {
        double v = score[i] + log_at[j * K + i];
        if (v > best) best = v;
      }
      for (int i = 0; i < K; i++)
        if (score[i] + log_at[j * K + i] == best) {
          from = i;
          break;
        }
      next[j] = best + w[t * K + j];
      before[t * K + j] = from;
    }
    memcpy(score, next, sizeof score);
  }
  int best = 0;
  for (int k = 1; k < K; k++)
    if (score[k] > score[best]) best = k;
  path[T - 1] = best;
  for (long t = T - 1; t > 0; t--) {
    best = before[t * K + best];
    path[t - 1] = best;
  }
  free(before);
}
